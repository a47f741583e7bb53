import sys
import types

import pytest

from bezoar import registry
from bezoar.errors import InputError
from bezoar.registry import Registry


@pytest.fixture
def colours():
    found = Registry("colour")
    for name in ("red", "dark-red", "blue"):
        found.register(name)(name.upper())
    return found


def test_what_was_registered_is_found(colours):
    assert colours.get("red") == "RED"
    assert colours.names() == ["blue", "dark-red", "red"]
    assert colours.names("*red") == ["dark-red", "red"]
    assert colours.names("x*") == []


def test_the_decorator_returns_what_it_was_given(colours):
    @colours.register("green")
    class Green:
        pass

    assert isinstance(Green, type) and colours.get("green") is Green


def test_a_name_cannot_be_taken_twice(colours):
    with pytest.raises(ValueError, match="colour 'red' is registered twice"):
        colours.register("red")("other")
    assert colours.get("red") == "RED"


@pytest.mark.parametrize(("given", "meant"), [("rde", "red"), ("darkred", "dark-red")])
def test_an_unknown_name_gets_the_nearest_one(colours, given, meant):
    with pytest.raises(InputError, match=f"no colour '{given}'; perhaps you meant '{meant}'"):
        colours.get(given)


def test_an_unknown_name_far_from_all_gets_the_list(colours):
    with pytest.raises(InputError) as caught:
        colours.get("quux")
    assert str(caught.value) == "there is no colour 'quux' (known: blue, dark-red, red)"


def test_other_packages_add_things_through_an_entry_point(monkeypatch):
    found = Registry("colour")
    module = types.ModuleType("plugin_of_the_test")

    class EntryPoint:
        loaded = 0

        def load(self):
            EntryPoint.loaded += 1
            found.register("ultraviolet")("from outside")
            return module

    def entry_points(*, group):
        return [EntryPoint()] if group == "bezoar.colours" else []

    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", entry_points)
    assert found.names() == ["ultraviolet"]
    assert found.get("ultraviolet") == "from outside"
    assert EntryPoint.loaded == 1


def test_methods_attacks_and_networks_are_registered_under_their_own_names():
    from bezoar.attacks import attacks
    from bezoar.methods import methods
    from bezoar.networks import networks

    for catalogue in (methods, attacks):
        for name in catalogue.names():
            assert catalogue.get(name).name == name
            assert catalogue.get(name).title
    assert {"tac", "ft"} <= set(methods.names())
    assert {"bad-nets", "blend", "stored-pattern"} <= set(attacks.names())
    assert {"small-cnn", "resnet-8"} <= set(networks.names())
