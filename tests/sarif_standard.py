"""What SARIF 2.1.0 says of the objects that bezoar writes, as far as a test can ask for it.

The schema of the standard is too large to keep here. The table below holds, for each object that we
write, the properties that we use out of those that the schema allows, and their types; ``!`` marks
what must be there: by the schema, or by GitHub's code scanning, which asks for more. What a schema
cannot say, such as that an index leads to what is meant, is checked below the table.
"""

import re

OBJECTS = {
    "log": {"$schema!": str, "version!": str, "runs!": ["run"]},
    "run": {
        "tool!": "tool",
        "invocations": ["invocation"],
        "originalUriBaseIds": {"artifactLocation"},
        "artifacts": ["artifact"],
        "results!": ["result"],
    },
    "tool": {"driver!": "toolComponent"},
    "toolComponent": {
        "name!": str,
        "version": str,
        "shortDescription": "text",
        "rules!": ["reportingDescriptor"],
        "notifications": ["reportingDescriptor"],
    },
    "reportingDescriptor": {
        "id!": str,
        "name": str,
        "shortDescription!": "text",
        "fullDescription!": "text",
        "help!": "text",
        "defaultConfiguration": "reportingConfiguration",
        "properties": dict,
    },
    "reportingConfiguration": {"level": ("none", "note", "warning", "error")},
    "invocation": {
        "executionSuccessful!": bool,
        "commandLine": str,
        "toolExecutionNotifications": ["notification"],
    },
    "notification": {
        "descriptor": "reportingDescriptorReference",
        "level": ("none", "note", "warning", "error"),
        "message!": "text",
        "locations": ["location"],
        "properties": dict,
    },
    "reportingDescriptorReference": {"id!": str, "index": int},
    "result": {
        "ruleId!": str,
        "ruleIndex": int,
        "kind": ("notApplicable", "pass", "fail", "review", "open", "informational"),
        "level": ("none", "note", "warning", "error"),
        "message!": "text",
        "locations!": ["location"],
        "partialFingerprints!": {str},
        "properties": dict,
    },
    "location": {"physicalLocation!": "physicalLocation"},
    "physicalLocation": {"artifactLocation!": "artifactLocation", "region": "region"},
    "artifactLocation": {"uri": str, "uriBaseId": str, "index": int, "description": "text"},
    "region": {"startLine!": int, "startColumn!": int, "endLine!": int, "endColumn!": int},
    "artifact": {"location": "artifactLocation", "roles": [("analysisTarget",)], "hashes": {str}},
    "text": {"text!": str},
}
# RFC 3986, as far as files need it: an absolute one, or a path without a colon in its first part
URI = re.compile(r"(file:///|(?![^/]*:))([\w.~!$&'()*+,;=:@/-]|%[0-9A-F]{2})+", re.ASCII)


def broken_rules(log):
    """What is wrong with a log, in sentences; none is how it should be."""
    broken = list(_shape(log, "log", "log"))
    if broken:
        return broken
    if log["version"] != "2.1.0":
        broken.append("the version is not 2.1.0")
    for run in log["runs"]:
        broken += _rules(run)
        broken += [f"{uri!r} is no URI" for uri in _uris(run) if not URI.fullmatch(uri)]
    return broken


def _shape(value, expected, where):
    if isinstance(expected, tuple):
        if value not in expected:
            yield f"{where} is {value!r}, not one of {expected}"
    elif isinstance(expected, list):
        if not isinstance(value, list):
            yield f"{where} is no array"
            return
        for n, item in enumerate(value):
            yield from _shape(item, expected[0], f"{where}[{n}]")
    elif isinstance(expected, set):
        (inner,) = expected
        for key, item in value.items():
            yield from _shape(item, inner, f"{where}.{key}")
    elif isinstance(expected, str):
        properties = {name.rstrip("!"): kind for name, kind in OBJECTS[expected].items()}
        for name in OBJECTS[expected]:
            if name.endswith("!") and value.get(name[:-1]) in (None, ""):
                yield f"{where} has no {name[:-1]}"
        for name, item in value.items():
            if name not in properties:
                yield f"{where} has {name}, which a {expected} does not have"
            else:
                yield from _shape(item, properties[name], f"{where}.{name}")
    elif type(value) is not expected:
        yield f"{where} is {value!r}, no {expected.__name__}"


def _rules(run):
    driver = run["tool"]["driver"]
    for name in ("rules", "notifications"):
        identifiers = [one["id"] for one in driver[name]]
        if len(set(identifiers)) < len(identifiers):
            yield f"two {name} have one id"
    for result in run["results"]:
        if driver["rules"][result["ruleIndex"]]["id"] != result["ruleId"]:
            yield "ruleIndex does not lead to ruleId"
        if (result["kind"] == "fail") == (result["level"] == "none"):
            yield "only what fails has a level, and it must have one"  # 3.27.10
        if not result["locations"]:
            yield "GitHub shows no result without a location"
        if "primaryLocationLineHash" not in result["partialFingerprints"]:
            yield "GitHub knows no result without primaryLocationLineHash"
        if any("region" not in one["physicalLocation"] for one in result["locations"]):
            yield "GitHub shows no location without a region"
    notifications = [n for i in run["invocations"] for n in i["toolExecutionNotifications"]]
    for told in notifications:
        reference = told["descriptor"]
        if driver["notifications"][reference["index"]]["id"] != reference["id"]:
            yield "a notification's index does not lead to its descriptor"
    for one in (*run["results"], *notifications):
        for location in one["locations"]:
            place = dict(location["physicalLocation"]["artifactLocation"])
            if run["artifacts"][place.pop("index")]["location"] != place:
                yield "a location's index does not lead to its artifact"


def _uris(thing):
    """The URIs of all locations; one with a base is relative, one without is absolute."""
    if isinstance(thing, list):
        for item in thing:
            yield from _uris(item)
    elif isinstance(thing, dict):
        uri = thing.get("uri")
        if uri is not None:
            yield (
                uri if uri.startswith("file:") != ("uriBaseId" in thing) else f"{uri} and its base"
            )
        for item in thing.values():
            yield from _uris(item)
