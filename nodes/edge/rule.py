"""A rule: which readings, which model, what is allowed; made from its configuration and a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from nodes.edge.decode import Layout
from nodes.edge.guardrails import Guardrails, Limits, policy_digest
from nodes.edge.model import Contract
from nodes.settings import DecisionSection
from schemas.errors import ConfigurationInvalid, Refused

__all__ = ["Rule"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What an inference node does with the readings of some topics.

    Args:
        name: the last level of its decisions' topic.
        filters: topic filters, with the QoS to subscribe with.
        publish_qos: of its decisions.
        layout: where a reading's numbers stand.
        window: W, readings in a window.
        hop: a decision every so many readings.
        limits: when the model may not speak.
        fallback: the verdict when it may not.
        keep_readings: whether readings are recorded too.
        sources_max: how many topics it takes readings from.
        policy_digest: SHA-256 of all this as configured.
    """

    name: str
    filters: Mapping[str, int]
    publish_qos: int
    layout: Layout
    window: int
    hop: int
    limits: Limits
    fallback: str
    keep_readings: bool
    sources_max: int
    policy_digest: bytes

    @classmethod
    def of(cls, section: DecisionSection, contract: Contract) -> "Rule":
        """The rule of a configuration, for the model that was loaded for it.

        Raises:
            ConfigurationInvalid: where the two do not fit; all of it at once.
        """
        problems: list[str] = []
        fields = _fields(section, contract, problems)
        window = _window(section, contract, problems)
        unknown = sorted(set(section.field) - set(fields))
        if unknown:
            problems.append(f"field names {', '.join(unknown)}, none of {', '.join(fields)}")
        if section.format == "number" and len(fields) != 1:
            problems.append(f'format = "number" is one field, the model has {len(fields)}')
        limits = Limits(
            section.confidence_min,
            section.input_range,
            section.output_range,
            section.stale_after_ms,
            section.silent_after_ms,
            section.slow_after_ms or section.valid_for_ms,
            section.valid_for_ms,
        )
        try:
            Guardrails(limits, fields, contract.values)
        except Refused as refused:
            problems.append(refused.detail)
        if problems:
            where = f"decisions {section.name!r} and model {contract.name} {contract.version}"
            raise ConfigurationInvalid(tuple(f"{where}: {problem}" for problem in problems))
        keys = tuple(section.field.get(field, field) for field in fields)
        return cls(
            section.name,
            dict.fromkeys(section.topics, section.qos),
            section.publish_qos,
            Layout(fields, keys, section.format, section.time_field or ""),
            window,
            section.hop,
            limits,
            section.fallback,
            section.keep_readings,
            section.sources_max,
            # Not the model's path: its digest stands beside this one in each decision.
            policy_digest(section.model_dump(mode="json", exclude={"model"})),
        )


def _fields(section: DecisionSection, contract: Contract, problems: list[str]) -> tuple[str, ...]:
    if contract.fields and section.fields and contract.fields != section.fields:
        problems.append(
            f"fields {', '.join(section.fields)}, but the model says {', '.join(contract.fields)}"
        )
    fields = contract.fields or section.fields or ()
    if not fields:
        problems.append("the model does not say its fields: name them in order, fields = […]")
    elif contract.width is not None and len(fields) != contract.width:
        problems.append(f"{len(fields)} fields, but the model takes {contract.width}")
    return fields


def _window(section: DecisionSection, contract: Contract, problems: list[str]) -> int:
    if contract.window and section.window and contract.window != section.window:
        problems.append(f"window = {section.window}, but the model takes {contract.window}")
    window = contract.window or section.window
    if window is None:
        problems.append("the model takes windows of any length: say window = …")
    return window or 1
