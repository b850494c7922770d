"""The table of named things: lookups that fail say what to do."""

import math
from importlib.metadata import EntryPoint

import pytest

from hq.errors import HQError
from hq.registry import Registry


@pytest.fixture
def fruit() -> Registry[int]:
    registry: Registry[int] = Registry("fruit")
    registry.add("apple", 1)
    registry.add("banana", 2)
    return registry


def test_things_are_found_by_name_in_the_order_of_entry(fruit: Registry[int]) -> None:
    assert fruit["banana"] == 2
    assert list(fruit) == ["apple", "banana"]
    assert "apple" in fruit
    assert "cherry" not in fruit


def test_register_decorates_and_returns_the_thing() -> None:
    registry: Registry[type] = Registry("class")

    @registry.register("a")
    class A: ...

    assert registry["a"] is A


def test_a_name_registered_twice_is_a_programming_error(fruit: Registry[int]) -> None:
    with pytest.raises(ValueError, match="fruit 'apple' is registered twice"):
        fruit.add("apple", 3)
    assert fruit["apple"] == 1


def test_a_near_miss_is_answered_with_the_name_meant(fruit: Registry[int]) -> None:
    with pytest.raises(HQError, match="no fruit 'bananna': did you mean 'banana'"):
        fruit["bananna"]


def test_a_far_miss_is_answered_with_all_names(fruit: Registry[int]) -> None:
    with pytest.raises(HQError, match=r"no fruit 'xyz': known are apple, banana\.$"):
        fruit["xyz"]


def test_an_entry_of_a_package_that_cannot_be_adopted_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def adopt(name: str, thing: object) -> int:
        raise TypeError("it has no stone\nand more")

    points = (EntryPoint("cherry", "math:pi", "toy.fruit"),)
    monkeypatch.setattr("hq.registry.entry_points", lambda group: points)
    registry: Registry[int] = Registry("fruit", "toy.fruit", adopt=adopt)
    sentence = r"fruit 'cherry' of math:pi cannot be loaded \(it has no stone\): update, correct"
    for call in (list, lambda entries: entries["cherry"]):
        with pytest.raises(HQError, match=sentence):
            call(registry)


def test_a_named_entry_is_imported_when_it_is_read() -> None:
    registry: Registry[float] = Registry("number")
    registry.add_named("pi", "math:pi")
    registry.add_named("missing", "no_such_module:thing")
    assert list(registry) == ["pi", "missing"]
    assert "missing" in registry
    assert registry["pi"] == math.pi
    with pytest.raises(ModuleNotFoundError):
        registry["missing"]
    with pytest.raises(ValueError, match="'pi' is registered twice"):
        registry.add("pi", 3.0)
    with pytest.raises(HQError, match="did you mean 'missing'"):
        registry["mising"]
