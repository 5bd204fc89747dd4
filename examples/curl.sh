#!/usr/bin/env bash
# Both services with nothing but curl: chat, upload, job, search, question, streamed question.
set -euo pipefail
model=${MODEL_URL:-http://127.0.0.1:8000/v1}
rag=${RAG_URL:-http://127.0.0.1:8001}
pdf=${1:-$(ls samples/*.zh.pdf)}

curl -fsS "$model/chat/completions" -H 'Content-Type: application/json' \
  -d '{"model": "'"${MODEL_NAME:-embedded}"'", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 16}'; echo

job=$(curl -fsS "$rag/documents" -F "file=@$pdf" | sed 's/.*"job_id":"\([^"]*\)".*/\1/')
curl -fsSN "$rag/jobs/$job/events" | tail -3
curl -fsS "$rag/search" -H 'Content-Type: application/json' -d '{"query": "租约的硬限制", "k": 1}'; echo
curl -fsS "$rag/rag/invoke" -H 'Content-Type: application/json' -d '{"input": {"question": "租约的硬限制是多久？"}}'; echo
curl -fsSN "$rag/rag/stream" -H 'Content-Type: application/json' -d '{"input": {"question": "租约的硬限制是多久？"}}'
