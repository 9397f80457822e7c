"""What clients say in several tests, in no dialect's shape."""

from __future__ import annotations

from tests.clients import turns

PIXEL_BASE64 = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PIXEL = f"data:image/png;base64,{PIXEL_BASE64}"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER_TOOL = {"name": "get_weather", "description": "Tell the weather.", "parameters": CITY}
WEATHER = [(call_id, name, "".join(pieces)) for call_id, name, pieces in turns.WEATHER]
