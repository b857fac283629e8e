import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "tools" / "generate_reference.py")
assert _spec is not None and _spec.loader is not None
generate_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate_reference)


def test_the_reference_pages_are_what_the_code_says() -> None:
    assert generate_reference.outdated() == [], "run: python tools/generate_reference.py"


def test_an_old_page_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "knobs.md").write_text(generate_reference.knobs_page().replace("prb_share", "prb_part"))
    (tmp_path / "kpis.md").write_text(generate_reference.kpis_page())
    assert generate_reference.outdated(tmp_path) == ["scenario.md", "knobs.md", "exit-codes.md", "cli.md"]


def test_every_key_of_a_scenario_is_described() -> None:
    page = generate_reference.scenario_page()
    for line in page.splitlines():
        if line.startswith("| `") and "| ---" not in line:
            cells = [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]
            assert cells[-1], f"no meaning: {line}"
