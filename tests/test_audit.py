"""The audit of a model that claims to be cleaned."""

import json

import pytest
import torch

from bezoar import audit as audit_module
from bezoar.audit import audit
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import RNP, BtiDbf, Evidence
from bezoar.methods.rnp_exposure import why_silent
from bezoar.records import to_json
from bezoar.scanning import WITNESSES

pytestmark = pytest.mark.xdist_group("audit")  # one process makes its fixtures


@pytest.fixture(scope="module")
def audits(digits):
    return {
        name: audit(getattr(digits, name), digits.clean, seed=0) for name in ("planted", "twin")
    }


def test_a_model_that_was_never_cleaned_is_told_so(audits, digits):
    found = audits["planted"].record["audit"]
    assert found["class"] == digits.attack.target
    assert found["outcome"] == "re-exposed"
    assert found["sentence"] in audits["planted"].record["reasons"]


def test_a_model_without_a_backdoor_falls_where_others_fall(audits):
    found = audits["twin"].record["audit"]
    assert found["outcome"] == "nothing re-exposed"
    assert audits["twin"].verdict.value == "nothing found"


def test_the_audit_adds_a_witness_to_the_scan(audits):
    assert [e.method for e in audits["twin"].evidence] == ["tac", "rnp"]
    json.dumps(to_json(audits["twin"].record), allow_nan=False)


def test_the_exposing_witness_stands_where_it_stood_and_who_cannot_look_is_left_out(
    every_witness, digits, monkeypatch
):
    def refuses(*_arguments, **_options):
        raise InputError("not this one")

    monkeypatch.setattr(BtiDbf, "inspect", refuses)
    finding = audit(digits.twin, digits.clean, seed=0)
    seen = [e.method for e in finding.evidence]
    assert seen == [name for name in WITNESSES if name not in ("bti-dbf", "smooth-pattern")]
    assert any("bti-dbf could not look" in notice for notice in finding.record["notices"])
    assert finding.record["audit"]["class"] == finding.evidence[1].record["trigger"]["class"]
    monkeypatch.setattr(RNP, "inspect", refuses)
    with pytest.raises(InputError, match="not this one"):
        audit(digits.twin, digits.clean, seed=0)


def test_the_model_stays_as_it_is(digits):
    before = {k: v.clone() for k, v in digits.twin.network.state_dict().items()}
    audit(digits.twin, digits.clean, seed=1)
    after = digits.twin.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_other_witnesses_do_not_see_is_told_as_perhaps_chance(digits, audits, monkeypatch):
    assert "may be chance" not in audits["planted"].record["audit"]["sentence"], "all see it"
    unusual = {"class": 3, "outcome": audit_module.EXPOSED, "sentence": "It draws all."}
    monkeypatch.setattr(audit_module, "_audited", lambda *_given: dict(unusual))
    finding = audit(digits.twin, digits.clean, seed=0)
    assert finding.verdict.value == "nothing found"
    assert finding.record["audit"]["sentence"].endswith("may be chance.")


def test_images_without_labels_are_refused_before_the_work(digits):
    with pytest.raises(InputError, match="audit"):
        audit(digits.twin, ImageSet(digits.clean.images))


@pytest.mark.parametrize(
    ("p", "as_it_is", "exposed", "outcome"),
    [
        (0.5, 0.1, 1.0, "nothing re-exposed"),
        (0.01, 0.1, 0.9, "re-exposed"),
        (0.05, 0.9, 0.9, "re-exposed"),
        (0.051, 0.9, 0.9, "nothing re-exposed"),
    ],
)
def test_what_was_re_exposed_is_named(p, as_it_is, exposed, outcome):
    evidence = Evidence(
        method="rnp",
        statistic="",
        values=(0.9, 0.2, 0.9),
        scores=(0.0, -3.0, 0.0),
        p_values=(1.0, p, 1.0),
        null="",
        record={"trigger": {"class": 1, "carried": as_it_is, "carried_unlearned": exposed}},
    )
    found = audit_module._audited(evidence, ("cat", "dog", "emu"), 0.05, "")
    assert found["outcome"] == outcome
    assert (
        f"as at most about {100 * p:.0f} in 100 networks" in found["sentence"] or outcome[0] == "n"
    )
    assert "Class dog draws 80 % of the images" in found["sentence"]
    silent = audit_module._audited(evidence, ("cat", "dog", "emu"), 0.05, "there are too few")
    assert silent["outcome"] == "could not tell"
    assert silent["sentence"].endswith("unlearns, which tells nothing: there are too few.")


def test_where_no_share_could_be_unusual_nothing_is_called_ordinary(digits, monkeypatch):
    """Too few networks without batch norms were measured for a small p-value."""
    assert why_silent(digits.twin.network, 10, 0.05) == ""
    assert "of two classes one draws" in why_silent(digits.twin.network, 2, 0.05)
    assert "without batch norms" in why_silent(torch.nn.Linear(3, 10), 10, 0.05)
    monkeypatch.setattr(audit_module, "why_silent", lambda *_given: "so it is")
    found = audit(digits.twin, digits.clean, witnesses=["weights"]).record["audit"]
    assert found["outcome"] == "could not tell" and "so it is" in found["sentence"]
