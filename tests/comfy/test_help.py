"""Help pages and translations, as the server gives them out and as the page shows them.

``WRITE_LOCALES=1 pytest tests/comfy/test_help.py`` makes the English texts anew from the nodes' schemas.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.comfy

ROOT = Path(__file__).resolve().parent.parent.parent
PACK = "ComfyUI-OASIS"
LANGUAGES = ("en", "zh")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
SPECIAL = re.compile(r"[{}@|]")
"""Characters that have a meaning in vue-i18n's message format."""


@pytest.fixture(scope="module")
def nodes(client: Any) -> dict[str, dict[str, Any]]:
    """The schema of every node of the pack."""
    info = json.loads(client.get("/object_info"))
    return {name: node for name, node in info.items() if node["category"] == "OASIS"}


def inputs_of(node: dict[str, Any]) -> dict[str, Any]:
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


def texts(node: dict[str, Any]) -> dict[str, Any]:
    """What of a schema is read by people, in the form of ``nodeDefs.json``."""
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {n: {"name": n, "tooltip": options["tooltip"]} for n, (_, options) in inputs_of(node).items()},
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def locale(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def shape(value: Any) -> Any:
    """Keys without their texts."""
    return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else None


def leaves(value: Any) -> list[str]:
    return [text for v in value.values() for text in leaves(v)] if isinstance(value, dict) else [value]


@pytest.mark.skipif("WRITE_LOCALES" not in os.environ, reason="writes into the checkout: WRITE_LOCALES=1")
def test_write_english(nodes: dict[str, Any]) -> None:
    text = json.dumps({name: texts(node) for name, node in sorted(nodes.items())}, indent=2)
    (ROOT / "locales" / "en" / "nodeDefs.json").write_text(text + "\n", encoding="utf-8")


def test_english_says_what_the_schemas_say(nodes: dict[str, Any]) -> None:
    assert locale("en") == {name: texts(node) for name, node in nodes.items()}


def test_chinese_says_all_that_english_says() -> None:
    assert shape(locale("zh")) == shape(locale("en"))
    same = [text for zh, text in zip(leaves(locale("zh")), leaves(locale("en")), strict=True) if zh == text]
    assert same == [], "not translated"


@pytest.mark.parametrize("language", LANGUAGES)
def test_server_gives_out_the_translations(client: Any, language: str) -> None:
    served = json.loads(client.get("/i18n"))[language]["nodeDefs"]
    assert served == locale(language)
    assert [text for text in leaves(served) if SPECIAL.search(text)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_its_page(client: Any, nodes: dict[str, Any], language: str) -> None:
    """It names every input under both its names, every choice of a few, and its pictures are there."""
    assert len(nodes) >= 4
    for name, node in nodes.items():
        page = client.get(f"/extensions/{PACK}/docs/{name}/{language}.md").decode()
        words = locale(language)[name]
        assert page.startswith(f"# {words['display_name']}\n")
        for key, entry in words["inputs"].items():
            assert f"`{key}`" in page, (name, key)
            assert entry["name"] in page, (name, key)
        for key, (kind, options) in inputs_of(node).items():
            choices = kind if isinstance(kind, list) else options.get("options", [])
            if key != "model_name":
                assert [c for c in choices if f"`{c}`" not in page] == [], (name, key)
        pictures = PICTURE.findall(page)
        assert pictures, name
        for path in pictures:
            assert client.get(f"/extensions/{PACK}/docs/{path}")[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG"), path
