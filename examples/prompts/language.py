"""Name the language of a sentence: a choice from a list.   python examples/prompts/language.py"""

from client import ask, fields, one_of

SENTENCES = [
    "Wo finde ich den nächsten Bahnhof?",
    "Combien coûte ce billet ?",
    "この電車は京都に止まりますか。",
    "¿Dónde está la estación?",
    "我的车票丢了，怎么办？",
]
LANGUAGES = ["Chinese", "English", "French", "German", "Japanese", "Spanish"]


def name_language(sentence: str) -> str:
    prompt = f"Sentence: {sentence}\n\nWhich language is the sentence written in?"
    language: str = ask(prompt, fields(language=one_of(*LANGUAGES)))["language"]
    return language


def main() -> None:
    for sentence in SENTENCES:
        language = name_language(sentence)
        print(f"{language}: {sentence}")
        assert language in LANGUAGES


if __name__ == "__main__":
    main()
