"""What saved workflows rely on, taken from a server's ``/object_info``, and what a newer version breaks of it.

Saved workflows hold node ids, widget values by position, and links by position.  So ids stay, inputs are only
appended and may be left out, a widget still takes every value that it took, and outputs only grow.
"""
from workflows.api import inputs_of, is_widget, options_of


def promise(info: dict) -> dict:
    """What one node promises.

    Options are promised where the code lists them; lists of files differ from machine to machine, and samplers and
    schedulers are the host's.
    """
    required = info["input"].get("required", {})
    inputs = []
    for name, spec in inputs_of(info).items():
        options = options_of(spec)
        choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
        entry = {"name": name, "type": spec[0] if isinstance(spec[0], str) else "COMBO", "widget": is_widget(spec),
                 "required": name in required}
        entry |= {key: options[key] for key in ("min", "max") if key in options}
        files = any("." in str(c) or "(" in str(c) for c in choices)
        if choices and not files and name not in ("sampler", "scheduler"):
            entry["options"] = choices
        inputs.append(entry)
    return {"inputs": inputs, "outputs": info["output"]}


def promises(object_info: dict) -> dict[str, dict]:
    return {name: promise(info) for name, info in sorted(object_info.items()) if name.startswith("InST_")}


def broken(before: dict[str, dict], now: dict[str, dict]) -> list[str]:
    """What promises of ``before`` are not kept by ``now``, in words."""
    found = [f"{node} is gone" for node in before.keys() - now.keys()]
    for node in sorted(before.keys() & now.keys()):
        found += [f"{node}: {problem}" for problem in _broken_in(before[node], now[node])]
    return found


def _broken_in(before: dict, now: dict) -> list[str]:
    found = []
    for widgets in (True, False):
        old, new = ([i for i in side["inputs"] if i["widget"] == widgets] for side in (before, now))
        places = [i["name"] for i in new]
        for place, entry in enumerate(old):
            if entry["name"] not in places:
                found.append(f"input {entry['name']} is gone")
            elif places.index(entry["name"]) != place:
                found.append(f"input {entry['name']} moved from place {place} to {places.index(entry['name'])}")
            else:
                found += _narrower(entry, new[place])
        known = {i["name"] for i in old}
        found += [f"new input {i['name']} is required" for i in new if i["name"] not in known and i["required"]]
    if now["outputs"][:len(before["outputs"])] != before["outputs"]:
        found.append(f"outputs were {before['outputs']}, are {now['outputs']}")
    return found


def _narrower(before: dict, now: dict) -> list[str]:
    """Values and links that an input took and takes no more."""
    name, found = before["name"], []
    if now["type"] != before["type"]:
        found.append(f"input {name} was {before['type']}, is {now['type']}")
    if now["required"] and not before["required"]:
        found.append(f"input {name} could be left out and is required")
    gone = set(before.get("options", ())) - set(now.get("options", before.get("options", ())))
    found += [f"input {name} does not take {value!r} any more" for value in sorted(gone)]
    if now.get("min", before.get("min")) != before.get("min") and now["min"] > before["min"]:
        found.append(f"input {name} began at {before['min']}, begins at {now['min']}")
    if now.get("max", before.get("max")) != before.get("max") and now["max"] < before["max"]:
        found.append(f"input {name} went to {before['max']}, goes to {now['max']}")
    return found
