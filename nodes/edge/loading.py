"""Loads what the rules of a configuration need, and says all that is wrong with it at once."""

from collections.abc import Sequence

from nodes.edge.model import Model
from nodes.edge.rule import Rule
from nodes.edge.runtime import OnnxModel
from nodes.settings import DecisionSection
from schemas.errors import ConfigurationInvalid, ModelUnusable

__all__ = ["load_rules"]


def load_rules(sections: Sequence[DecisionSection]) -> list[tuple[Rule, Model]]:
    """The rules, each with its model; a file that several rules name is loaded once.

    Blocks while files are read: call it in a thread when anything else is to be done meanwhile.

    Raises:
        ModelUnusable: all that is wrong, a line each, where a model is.
        ConfigurationInvalid: as above, where a rule does not fit its model.
    """
    loaded: dict[tuple[object, ...], OnnxModel] = {}
    rules: list[tuple[Rule, Model]] = []
    unusable: list[str] = []
    unfitting: list[str] = []
    for section in sections:
        width = len(section.fields) if section.fields else None
        key = (section.model, section.window, width)
        try:
            if key not in loaded:
                loaded[key] = OnnxModel.load(section.model, window=section.window, width=width)
            rules.append((Rule.of(section, loaded[key].contract), loaded[key]))
        except ModelUnusable as wrong:
            unusable.append(f"decisions {section.name!r}: {wrong}")
        except ConfigurationInvalid as wrong:
            unfitting += wrong.problems
    if unusable:
        raise ModelUnusable("\n".join((*unusable, *unfitting)))
    if unfitting:
        raise ConfigurationInvalid(tuple(unfitting))
    return rules
