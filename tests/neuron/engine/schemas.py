"""Random JSON schemas."""

from __future__ import annotations

NAMES = ("name", "age", "city", "é", "is_ok", "a b", "$id", "items")


def schema_of(made, depth=0):
    """Return a schema all of whose answers are short."""
    kinds = [word, integer, pattern, choice, lambda _: {"type": made.choice(["boolean", "null"])}]
    if depth < 2:
        kinds += [lambda m: record(m, depth), lambda m: array(m, depth), lambda m: either(m, depth)]
    return made.choice(kinds if depth else kinds[-3:-1])(made)


def word(made):
    return {"type": "string", "minLength": made.randrange(3), "maxLength": made.randrange(3, 13)}


def integer(made):
    low = made.randrange(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + made.randrange(1000)}


def pattern(made):
    return made.choice(
        [
            {"type": "string", "pattern": "^[a-f]{2,6}$"},
            {"type": "string", "pattern": r"^\d{3}-\d{2}$"},
            {"type": "string", "format": "ipv4"},
        ]
    )


def choice(made):
    values = ["red", "blue", 3, -1, True, None, 'a "quoted" one']
    return {"enum": made.sample(values, made.randrange(1, 4))}


def array(made, depth):
    least = made.randrange(2)
    items = schema_of(made, depth + 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + 1}


def record(made, depth):
    names = made.sample(NAMES, made.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: schema_of(made, depth + 1) for name in names},
        "required": made.sample(names, made.randrange(len(names) + 1)),
        "additionalProperties": False,
    }


def either(made, depth):
    return {"anyOf": [schema_of(made, depth + 1), schema_of(made, depth + 1)]}
