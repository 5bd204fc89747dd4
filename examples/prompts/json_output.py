"""Ask for JSON: name the keys, and let the schema see to the rest.   python examples/prompts/json_output.py

A prompt alone gets JSON most of the time. With `response_format` the server lets nothing else be written, so the answer can
be read by a program without a second thought.
"""

import json

from client import ask, fields, text

PROMPT = "编三家虚构的小店，写出每家店的店名、所在的城市和卖的东西。"

SHOP = fields(店名=text(at_most=12), 城市=text(at_most=6), 商品=text(at_most=12))
SCHEMA = fields(小店={"type": "array", "items": SHOP, "minItems": 3, "maxItems": 3})


def main() -> None:
    shops = ask(PROMPT, SCHEMA)["小店"]
    print(json.dumps(shops, ensure_ascii=False, indent=2))
    assert len(shops) == 3
    assert all(list(shop) == ["店名", "城市", "商品"] for shop in shops)


if __name__ == "__main__":
    main()
