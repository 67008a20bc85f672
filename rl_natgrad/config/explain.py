"""What a refused configuration is told: one line with the key, the value, what is allowed, the nearest."""

from collections.abc import Iterator
from typing import Any

from rl_natgrad.config.refusals import did_you_mean, listing, nearest, show
from rl_natgrad.config.schema import MODELS, Config


def keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a nested mapping, but for the names of its choices."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from keys(value, f"{prefix}{name}.")
        elif f"{prefix}{name}".removesuffix(".name") not in MODELS:
            yield prefix + name


def unknown(key: str, tree: dict[str, Any]) -> str:
    """The answer to a key that the composed configuration does not have."""
    others = [f"{group}.{field}" for group, choices in MODELS.items()
              for model in choices.values() for field in model.model_fields if field != "name"]
    if key in others:
        return belongs(key, tree)
    section, dot, _ = key.partition(".")
    present = [*keys(tree), *([] if dot else MODELS)]
    near = nearest(key, [*present, *others])
    if here := [name for name in near if name in present]:
        advice = f"did you mean {listing(map(repr, here), 'or')}?"
    elif near:
        advice = belongs(near[0], tree)
    else:
        advice = _has(section, tree) if isinstance(tree.get(section), dict) else "--help lists them"
    return f"unknown key {key!r}; {advice}"


def belongs(key: str, tree: dict[str, Any]) -> str:
    """That a group or key is of other choices than the present one, and what the present one has instead."""
    group, _, field = key.partition(".")
    if group in tree:
        owners = [name for name, model in MODELS[group].items() if field in model.model_fields]
        has = _has(group, tree)
    else:
        owners = [name for name, model in MODELS["algo"].items() if group in model.groups]
        algo = tree["algo"]["name"]
        has = f"algo={algo} has {listing(MODELS['algo'][algo].groups)}"
    return f"{key} belongs to {listing(owners)}; {has}"


def _has(section: str, tree: dict[str, Any]) -> str:
    """What there is in a section: `algo=pg has gamma, lam, …`."""
    names = [name for name in tree[section] if name != "name"]
    choice = f"{section}={tree[section]['name']}" if "name" in tree[section] else section
    return f"{choice} has {listing(names) if names else 'no keys'}"


def explain(error: Any) -> str:
    """One of pydantic's errors as our one line."""
    path, kind, value = list(error["loc"]), error["type"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if not path:
        return f"a configuration must be a mapping, got {show(value)}"
    if kind.startswith("union_tag"):
        name = value.get("name") if isinstance(value, dict) else value
        return f"{path[0]}.name must be {listing(MODELS[path[0]], 'or')}, got {show(name)}"
    key = field = path[0]
    model: Any = Config
    if len(path) > 1:
        models = MODELS.get(key, {"": Config.model_fields[key].annotation})
        tag, field = path[1:3] if len(path) > 2 and path[1] in models else (next(iter(models)), path[1])
        key, model = f"{key}.{field}", models[tag]
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"unknown key {key!r}" + did_you_mean(str(field), model.model_fields)
    schema = model.model_json_schema()["properties"][field]
    near = did_you_mean(str(value), schema["enum"]) if "enum" in schema else ""
    return f"{key} must be {allowed(schema)}, got {show(value)}{near}"


def allowed(schema: dict[str, Any]) -> str:
    """What a key takes, in words, from its JSON schema."""
    if "anyOf" in schema:
        return listing((allowed(option) for option in schema["anyOf"]), "or")
    if "enum" in schema or "const" in schema:
        return listing(schema.get("enum") or [schema["const"]], "or")
    if "description" in schema:
        return schema["description"]
    if schema.get("type") == "array":
        size = f" of {schema['minItems']}" if "minItems" in schema else ""
        return f"a list{size}, each {allowed(schema['items'])}"
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f"{words.get(schema.get('type', ''), 'a section of keys')} {' and '.join(bounds)}".rstrip()
