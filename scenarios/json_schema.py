"""The published JSON Schema of scenario files, generated from :mod:`scenarios.schema`."""

from __future__ import annotations

import json
from pathlib import Path

from scenarios.schema import ScenarioFile

SCHEMA_FILE = Path(__file__).parent / "twin.schema.json"


def schema_text() -> str:
    """The schema as JSON text; ``scenarios/twin.schema.json`` holds exactly this."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:twinbed:scenario",
        **ScenarioFile.model_json_schema(by_alias=True),
        "title": "TwinBed scenario",
    }
    return json.dumps(schema, indent=2) + "\n"
