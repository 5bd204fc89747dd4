"""A support queue in many languages: for each message its language, and what it says in Chinese and in English.

python examples/prompts/support_queue.py
"""

import json

from client import ask, fields, in_chinese
from language import LANGUAGES, name_language

QUEUE = [
    "La pantalla se queda negra al encender el ordenador.",
    "プリンターの電源が入りません。",
    "我的键盘有几个键失灵了。",
    "L'imprimante ne répond plus depuis hier.",
]

# The patterns keep each translation in its own script: Chinese characters and punctuation, or plain ASCII.
TRANSLATIONS = fields(
    chinese={"type": "string", "pattern": "^[\u4e00-\u9fff，、]{4,40}[。！？]$"},
    english={"type": "string", "pattern": "^[A-Z][a-zA-Z ,']{8,118}[.!?]$"},
)


def main() -> None:
    for message in QUEUE:
        translations = ask(f"Message: {message}\n\nTranslate the message to Chinese and to English.", TRANSLATIONS)
        ticket = {"message": message, "language": name_language(message), **translations}
        print(json.dumps(ticket, ensure_ascii=False))
        assert ticket["language"] in LANGUAGES
        assert in_chinese(ticket["chinese"])
        assert ticket["english"].isascii()


if __name__ == "__main__":
    main()
