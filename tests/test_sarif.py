"""SARIF: what the standard and GitHub's code scanning ask for, and what a gate reads from it."""

import copy
import json
import shutil
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from sarif_standard import broken_rules

import bezoar
from bezoar import cli
from bezoar.sarif import sarif_log

FACTS = ("--architecture", "bezoar:small-cnn", "--mean", "0.3", "--std", "0.35")


def found(weights="/m/models/a.pt", **more):
    return {
        "weights": weights,
        "sha256": "ab" * 32,
        "verdict": "backdoor found",
        "sentence": "A shift carries almost every image into class stop.",
        "reasons": ["Class stop: p = 0.001."],
        "notices": [],
        "suspects": [3],
        "suspect_names": ["stop"],
        "suspect_p": [0.001],
        "p": 0.001,
        "seconds": 2.5,
    } | more


def failed(**more):
    reason = {"kind": "timeout", "reason": "still running after 5 s", "traceback": "secret"}
    told = {"line": 4, "model": "b.pt", "images": "x", "seconds": 5.0}
    return told | {"weights": "/m/models/b.pt", "failed": reason} | more


NOTHING = {"verdict": "nothing found", "suspects": [], "suspect_names": [], "suspect_p": []}


def run_of(*entries, base="/m", **more):
    log = sarif_log(entries, base=Path(base), **more)
    assert broken_rules(log) == []
    (run,) = log["runs"]
    return json.loads(json.dumps(run))


def uri(located):
    return located["physicalLocation"]["artifactLocation"]["uri"]


# -- one entry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "rule", "kind", "level"),
    [
        ("backdoor found", "backdoor-found", "fail", "error"),
        ("suspicious", "suspicious", "fail", "warning"),
        ("nothing found", "nothing-found", "pass", "none"),
    ],
)
def test_each_verdict_is_a_result_of_its_own_rule(verdict, rule, kind, level):
    run = run_of(found(verdict=verdict))
    (result,) = run["results"]
    assert (result["ruleId"], result["kind"], result["level"]) == (rule, kind, level)
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == rule
    text = result["message"]["text"]
    assert text == f"{verdict.capitalize()}. {found()['sentence']} {found()['reasons'][0]}"
    assert run["invocations"] == [
        {"executionSuccessful": True, "toolExecutionNotifications": []},
    ]
    assert run["tool"]["driver"]["version"] == bezoar.__version__


def test_notes_are_in_the_message_of_a_pass():
    blind = "With 3 classes nobody can say anything."
    (result,) = run_of(found(**NOTHING, notices=[blind, "Two."]))["results"]
    assert result["kind"] == "pass"
    assert result["message"]["text"].endswith(f" Note: {blind} Note: Two.")


def test_suspects_and_p_values_are_properties():
    (result,) = run_of(found(model="a.toml", images="clean", line=2))["results"]
    assert result["properties"] == {
        "model": "a.toml",
        "images": "clean",
        "line": 2,
        "verdict": "backdoor found",
        "p": 0.001,
        "suspects": [{"class": 3, "name": "stop", "p": 0.001}],
        "seconds": 2.5,
    }


def test_a_model_that_could_not_be_used_is_no_result_but_said():
    run = run_of(found(**NOTHING), failed())
    assert [result["kind"] for result in run["results"]] == ["pass"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    (told,) = invocation["toolExecutionNotifications"]
    assert told["level"] == "error" and told["descriptor"]["id"] == "not-usable"
    assert told["message"]["text"] == "b.pt could not be used: still running after 5 s"
    assert uri(told["locations"][0]) == "models/b.pt"
    assert "hashes" not in run["artifacts"][1], "what was not read has none"
    assert "secret" not in json.dumps(run)


def test_no_model_is_called_clean():
    def texts(thing):
        if isinstance(thing, dict):
            return [t for value in thing.values() for t in texts(value)]
        if isinstance(thing, list):
            return [t for value in thing for t in texts(value)]
        return [thing] if isinstance(thing, str) else []

    run = run_of(found(**NOTHING), found(), failed())
    about_models = [t.replace("clean images", "").replace("bezoar clean", "") for t in texts(run)]
    assert not [text for text in about_models if "clean" in text.lower()]


def test_names_from_files_that_are_not_trusted_are_no_links_and_no_arguments():
    sentence = "Class [free](http://bad.example) {0} stands out."
    (result,) = run_of(found(sentence=sentence))["results"]
    assert "](" not in result["message"]["text"] and "{{0}}" in result["message"]["text"]


# -- locations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("/m/models/a.pt", "models/a.pt"),
        ("models/a.pt", "models/a.pt"),
        ("models/../b.pt", "b.pt"),
        ("/m/a b#c?d%e:f.pt", "a%20b%23c%3Fd%25e%3Af.pt"),
        ("/m/größe.pt", "gr%C3%B6%C3%9Fe.pt"),
        ("/m/odd\udcff.pt", "odd%FF.pt"),
        ("/other/a b.pt", "file:///other/a%20b.pt"),
        ("/modern/a.pt", "file:///modern/a.pt"),
    ],
)
def test_files_are_named_from_the_folder_of_the_run(weights, expected):
    run = run_of(found(weights))
    (artifact,) = run["artifacts"]
    (location,) = run["results"][0]["locations"]
    assert artifact["location"]["uri"] == uri(location) == expected
    below = not expected.startswith("file:")
    assert (artifact["location"].get("uriBaseId") == "%SRCROOT%") is below
    assert artifact["hashes"] == {"sha-256": "ab" * 32}
    back = urlsplit(urljoin("file:///m/", expected)).path
    wanted = {"models/../b.pt": "/m/b.pt", "models/a.pt": "/m/models/a.pt"}.get(weights, weights)
    assert unquote(back, errors="surrogateescape") == wanted


def test_a_link_is_named_after_its_target_unless_that_lies_elsewhere(tmp_path):
    here, store = tmp_path / "here", tmp_path / "store"
    for folder in (here, store):
        folder.mkdir()
        (folder / "blob").touch()
    (here / "inside.pt").symlink_to(here / "blob")
    (here / "outside.pt").symlink_to(store / "blob")
    (tmp_path / "also-here").symlink_to(here)
    for base in (here, tmp_path / "also-here"):
        run = run_of(found(str(base / "inside.pt")), found(str(base / "outside.pt")), base=base)
        assert [one["location"]["uri"] for one in run["artifacts"]] == ["blob", "outside.pt"]


def test_a_way_up_from_a_linked_folder_is_that_of_the_system(tmp_path):
    here, store = tmp_path / "here", tmp_path / "store"
    for folder in (here, here / "models", store / "jobs"):
        folder.mkdir(parents=True)
    (store / "a.pt").touch()
    (here / "a.pt").touch()
    (here / "linked").symlink_to(store)
    (here / "models" / "current").symlink_to(store / "jobs")
    run = run_of(
        found(str(here / "linked" / "a.pt")),
        found(str(here / "models" / "current" / ".." / "a.pt")),
        base=here,
    )
    places = [one["location"]["uri"] for one in run["artifacts"]]
    assert places == ["linked/a.pt", (store / "a.pt").as_uri()]


def test_a_file_that_is_scanned_twice_is_one_artifact():
    run = run_of(found(images="a"), found(images="b"), found("/m/c.pt"), failed())
    assert [a["location"]["uri"] for a in run["artifacts"]] == [
        "models/a.pt",
        "c.pt",
        "models/b.pt",
    ]
    indices = [
        r["locations"][0]["physicalLocation"]["artifactLocation"]["index"] for r in run["results"]
    ]
    assert indices == [0, 0, 1]


def test_fingerprints_stay_until_verdict_file_or_place_change():
    def prints(entry, **more):
        return run_of(entry, **more)["results"][0]["partialFingerprints"]

    first = prints(found())
    assert first == prints(found(p=0.002, seconds=9.0, sentence="Other words."), command="bezoar")
    assert first == prints(found("/elsewhere/models/a.pt"), base="/elsewhere")
    others = (found(verdict="suspicious"), found(sha256="cd" * 32), found("/m/b.pt"))
    assert len({json.dumps(one) for one in (first, *map(prints, others))}) == 4
    assert all(one.endswith(":1") for one in (first["primaryLocationLineHash"],))


# -- the checker itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda log: log.update(version="2.0.0"),
        lambda log: log["runs"][0].pop("tool"),
        lambda log: log["runs"][0].update(extra=1),
        lambda log: log["runs"][0]["tool"]["driver"].pop("name"),
        lambda log: log["runs"][0]["tool"]["driver"]["rules"].append({"id": "suspicious"}),
        lambda log: log["runs"][0]["tool"]["driver"]["rules"][0].pop("help"),
        lambda log: log["runs"][0]["invocations"][0].pop("executionSuccessful"),
        lambda log: log["runs"][0]["results"][0].pop("message"),
        lambda log: log["runs"][0]["results"][0].update(kind="pass"),
        lambda log: log["runs"][0]["results"][0].update(level="fatal"),
        lambda log: log["runs"][0]["results"][0].update(ruleIndex=2),
        lambda log: log["runs"][0]["results"][0].update(ruleId="other"),
        lambda log: log["runs"][0]["results"][0].update(locations=[]),
        lambda log: log["runs"][0]["results"][0].update(partialFingerprints={"a": 1}),
        lambda log: log["runs"][0]["artifacts"][0]["location"].update(uri="a b.pt"),
        lambda log: log["runs"][0]["artifacts"][0]["location"].update(uri="b.pt"),
        lambda log: log["runs"][0]["artifacts"][0].update(roles=["model"]),
        lambda log: log["runs"][0]["artifacts"][0].update(hashes={"sha-256": 1}),
    ],
)
def test_the_check_sees_what_breaks_the_standard(damage):
    log = copy.deepcopy(sarif_log([found(), failed()], base=Path("/m")))
    assert broken_rules(log) == []
    damage(log)
    assert broken_rules(log)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def files(model_files, tmp_path, monkeypatch):
    folder = tmp_path / "my models"
    shutil.copytree(model_files, folder)
    (folder / "text.pt").write_text("these are no weights")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_single_scan_writes_what_its_record_says(files, capsys):
    arguments = ["scan", "my models/planted.toml", "--images", "my models/clean.npz"]
    arguments += ["--methods", "tac", "--json", "record.json"]
    assert cli.run([*arguments, "--sarif", "-"]) == 1
    log = json.loads(capsys.readouterr().out)
    assert broken_rules(log) == []
    record = json.loads(Path("record.json").read_text())
    (result,) = log["runs"][0]["results"]
    assert uri(result["locations"][0]) == "my%20models/planted.safetensors"
    assert record["sentence"] in result["message"]["text"]
    assert all(reason in result["message"]["text"] for reason in record["reasons"])
    (artifact,) = log["runs"][0]["artifacts"]
    assert artifact["hashes"]["sha-256"] == record["model"]["sha256"]
    assert log["runs"][0]["invocations"][0]["commandLine"].startswith("bezoar")
    assert cli.run([*arguments, "--sarif", "scan.sarif"]) == 1
    assert "BACKDOOR FOUND" in capsys.readouterr().out
    kept = json.loads(Path("scan.sarif").read_text())
    assert kept["runs"][0]["results"][0]["ruleId"] == "backdoor-found"
    Path("scan.sarif").write_text("as before")
    assert cli.run(["scan", str(files / "text.pt"), *FACTS, "--sarif", "scan.sarif"]) == 2
    assert Path("scan.sarif").read_text() == "as before"


def test_a_manifest_gives_one_run_with_a_result_for_each_model(files, capsys):
    facts = "bezoar:small-cnn,0.3,0.35"
    Path("models.csv").write_text(
        "model,architecture,mean,std\n"
        f"my models/twin.toml,,,\nmy models/text.pt,{facts}\nmy models/planted.pt,{facts}\n"
    )
    arguments = ["scan", "--manifest", "models.csv", "--images", "my models/clean.npz"]
    arguments += ["--executor", "here", "--methods", "tac", "--quiet", "--sarif", "scan.sarif"]
    assert cli.run(arguments) == 1
    log = json.loads(Path("scan.sarif").read_text())
    assert broken_rules(log) == []
    (run,) = log["runs"]
    told = {uri(r["locations"][0]): r["ruleId"] for r in run["results"]}
    assert list(told.items()) == [
        ("my%20models/planted.pt", "backdoor-found"),
        ("my%20models/twin.safetensors", "nothing-found"),
    ]
    (notification,) = run["invocations"][0]["toolExecutionNotifications"]
    assert "is a text file" in notification["message"]["text"]
    assert not run["invocations"][0]["executionSuccessful"]
