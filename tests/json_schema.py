"""As much of JSON Schema (2020-12) as the schemas in specs/ use; a keyword that it does not know is an error."""

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
SILENT = {"$schema", "$id", "$defs", "title", "description", "default", "then", "else"}


def is_valid(value, schema, root=None):
    """Whether the schema allows the value."""
    root = schema if root is None else root
    for keyword, wanted in schema.items():
        if keyword not in SILENT and not RULES[keyword](value, wanted, schema, root):
            return False
    return True


def is_of(value, name):
    return isinstance(value, TYPES[name]) and (name != "integer" or not isinstance(value, bool))


def referred(value, reference, schema, root):
    part = root
    for name in reference.removeprefix("#/").split("/"):
        part = part[name]
    return is_valid(value, part, root)


def chosen(value, condition, schema, root):
    branch = schema.get("then" if is_valid(value, condition, root) else "else", {})
    return is_valid(value, branch, root)


def each_item(value, wanted, schema, root):
    rest = value[len(schema.get("prefixItems", ())) :] if isinstance(value, list) else []
    return not rest if wanted is False else all(is_valid(item, wanted, root) for item in rest)


RULES = {
    "$ref": referred,
    "if": chosen,
    "items": each_item,
    "type": lambda value, wanted, *_: is_of(value, wanted),
    "const": lambda value, wanted, *_: type(value) is type(wanted) and value == wanted,
    "enum": lambda value, wanted, *_: value in wanted,
    "minimum": lambda value, wanted, *_: not is_of(value, "integer") or value >= wanted,
    "exclusiveMaximum": lambda value, wanted, *_: not is_of(value, "integer") or value < wanted,
    "minLength": lambda value, wanted, *_: not isinstance(value, str) or len(value) >= wanted,
    "minItems": lambda value, wanted, *_: not isinstance(value, list) or len(value) >= wanted,
    "required": lambda value, wanted, *_: not isinstance(value, dict) or set(wanted) <= set(value),
    "not": lambda value, wanted, _, root: not is_valid(value, wanted, root),
    "allOf": lambda value, wanted, _, root: all(is_valid(value, part, root) for part in wanted),
    "oneOf": lambda value, wanted, _, root: sum(is_valid(value, part, root) for part in wanted) == 1,
    "prefixItems": lambda value, wanted, _, root: (
        not isinstance(value, list)
        or all(is_valid(item, part, root) for item, part in zip(value, wanted, strict=False))
    ),
    "properties": lambda value, wanted, _, root: (
        not isinstance(value, dict)
        or all(is_valid(value[name], part, root) for name, part in wanted.items() if name in value)
    ),
}
