"""`grid.powerbreach.enforcement.v1`: what became of the shed hints of an alert, resource by resource.

Sent by whoever carries them out, read by whoever gave the advice: a hint that failed lowers no power.
The overall code follows from the results. What a sender says of it is read and not corrected: a reader who
needs certainty looks at the results.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from protocols.dsx_flex.breach import (
    ACTIONS,
    HINTS_MAX,
    RESOURCE_TYPES,
    Action,
    Alert,
    ResourceType,
    ShedHint,
)
from protocols.dsx_flex.wire import (
    TEXT_MAX_CHARS,
    DsxFlexError,
    a_list,
    a_text,
    a_uuid,
    a_word,
    an_object,
    moment,
    power,
    power_w,
    time_utc_s,
)
from protocols.members import shown

RESULTS_MAX: Final = HINTS_MAX

Phase = Literal["applied", "reverted"]
Outcome = Literal["applied", "failed", "skipped"]
Code = Literal["success", "partial", "error"]


@dataclass(frozen=True)
class Result:
    """What became of one hint."""

    resource_id: str
    resource_type: ResourceType
    requested_action: Action
    code: Outcome
    message: str = ""
    applied_w: float | None = None  # where it is not what was asked

    @classmethod
    def of(cls, hint: ShedHint, code: Outcome, message: str = "", applied_w: float | None = None) -> "Result":
        return cls(hint.resource_id, hint.resource_type, hint.action, code, message, applied_w)


@dataclass(frozen=True)
class Enforcement:
    """An answer to an alert.

    Attributes:
        breach_id: of the alert.
        feed: the same.
        phase: its hints were carried out, or taken back.
        code: of all of it.
        results: one per hint.
        done_utc_s: when that was finished.
        message: for people.
    """

    breach_id: str
    feed: str
    phase: Phase
    code: Code
    results: tuple[Result, ...]
    done_utc_s: float
    message: str = ""

    @classmethod
    def of(
        cls, alert: Alert, phase: Phase, results: Iterable[Result], *, done_utc_s: float, message: str = ""
    ) -> "Enforcement":
        """The answer to an alert whose hints had these results, one per hint."""
        told = tuple(results)
        return cls(alert.breach_id, alert.feed, phase, overall_code(told), told, done_utc_s, message)


def overall_code(results: tuple[Result, ...]) -> Code:
    """All done, some done, nothing done. Where nothing was asked, nothing failed."""
    done = sum(result.code == "applied" for result in results)
    if done == len(results):
        return "success"
    return "partial" if done else "error"


def enforcement_data(enforcement: Enforcement) -> dict[str, Any]:
    """The data of an enforcement."""
    said: dict[str, Any] = {
        "breach_id": enforcement.breach_id,
        "feed_tag": enforcement.feed,
        "action": enforcement.phase,
        "code": enforcement.code,
        "results": [_result_data(result) for result in enforcement.results],
        "timestamp": moment(enforcement.done_utc_s),
    }
    return said | ({"diag_msg": enforcement.message} if enforcement.message else {})


def _result_data(result: Result) -> dict[str, Any]:
    said: dict[str, Any] = {
        "resource_id": result.resource_id,
        "resource_type": result.resource_type,
        "requested_action": result.requested_action,
        "code": result.code,
    }
    if result.message:
        said["message"] = result.message
    if result.applied_w is not None:
        said["applied_power"] = power(result.applied_w)
    return said


def read_enforcement(data: Mapping[str, Any]) -> Enforcement:
    """Somebody's answer to an alert.

    Args:
        data: the envelope's, opened.

    Raises:
        DsxFlexError: any of it cannot be meant; then none counts.
    """
    results = a_list(data.get("results"), "results", RESULTS_MAX)
    return Enforcement(
        breach_id=a_uuid(data.get("breach_id"), "breach_id"),
        feed=a_text(data.get("feed_tag"), "feed_tag"),
        phase=cast("Phase", a_word(data.get("action"), "action", get_args(Phase))),
        code=cast("Code", a_word(data.get("code"), "code", get_args(Code))),
        results=tuple(_result(one, f"results[{number}]") for number, one in enumerate(results)),
        done_utc_s=time_utc_s(data.get("timestamp"), "timestamp"),
        message=_message(data.get("diag_msg"), "diag_msg"),
    )


def _result(value: object, path: str) -> Result:
    said = an_object(value, path)
    applied = said.get("applied_power")
    return Result(
        resource_id=a_text(said.get("resource_id"), f"{path}.resource_id"),
        resource_type=cast(
            "ResourceType", a_word(said.get("resource_type"), f"{path}.resource_type", RESOURCE_TYPES)
        ),
        requested_action=cast(
            "Action", a_word(said.get("requested_action"), f"{path}.requested_action", ACTIONS)
        ),
        code=cast("Outcome", a_word(said.get("code"), f"{path}.code", get_args(Outcome))),
        message=_message(said.get("message"), f"{path}.message"),
        applied_w=None if applied is None else power_w(applied, f"{path}.applied_power"),
    )


def _message(value: object, path: str) -> str:
    """For people: what cannot be shown is blanked, and never spoils the rest."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DsxFlexError(f"{path}: {shown(value)}; send a text")
    return "".join(sign if sign.isprintable() else " " for sign in value[:TEXT_MAX_CHARS])
