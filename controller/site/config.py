"""The `site` part of `block.yaml`: who may ask for what, and how fast the block then moves.

Neither OpenADR nor DSX Flex says how steep a curtailment may be, what level 2 means in kW, or what to do when
the sender falls silent. All of that is agreed between site and block once, and written down here.

    site:
      failsafe_kw: 9
      ramp: {down_kw_per_s: 0.6, up_kw_per_s: 0.4}
      sources:
        - {kind: openadr_mqtt, name: utility, topics: [openadr/events], heartbeat_topic: site/heartbeat}

A source with a `heartbeat_timeout_s` is watched: its silence means failsafe, whatever the others say.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from controller.agent.config import MqttConfig, TopicName
from controller.yaml_config import File
from protocols.dsx_flex.topics import AGENT_SPELLINGS

SOURCES_MAX: Final = 8
TOPICS_MAX: Final = 64
FACILITY: Final = "facility"

TOPIC_MAX_BYTES: Final = 65_535  # MQTT 3.1.1, 1.5.3


def _filter(topic: str) -> str:
    """What MQTT lets one subscribe to."""
    if not topic or "\0" in topic or len(topic.encode(errors="replace")) > TOPIC_MAX_BYTES:
        raise ValueError(f"no MQTT topic; write 1 to {TOPIC_MAX_BYTES} bytes")
    levels = topic.split("/")
    if "#" in "".join(levels[:-1]) or any(len(one) > 1 and set(one) & {"+", "#"} for one in levels):
        raise ValueError("a wildcard stands for whole levels: + for one, # for the rest at the end")
    return topic


def _one_topic(topic: str) -> str:
    """What MQTT lets one publish to."""
    if set(_filter(topic)) & {"+", "#"}:
        raise ValueError("messages go to one topic each; name it without + and #")
    return topic


TopicFilter = Annotated[str, AfterValidator(_filter)]
OneTopic = Annotated[str, AfterValidator(_one_topic)]
Kw = Annotated[float, Field(gt=0, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Timeout = Annotated[float, Field(ge=0.5, le=3600)]
Topics = Annotated[tuple[TopicFilter, ...], Field(min_length=1, max_length=TOPICS_MAX)]
Alert = Literal["ALERT_GRID_EMERGENCY", "ALERT_BLACK_START", "ALERT_POSSIBLE_OUTAGE"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RampConfig(_Strict):
    """What was agreed about the way there and back."""

    down_kw_per_s: Kw
    up_kw_per_s: Kw
    arrive_at_start: bool = False  # true: be at the limit when its window opens, not start then
    recovery_spread_s: Annotated[float, Field(ge=0, le=7200)] = 0.0  # windows end later by up to this much


class StepConfig(_Strict):
    """A limit above a price or a carbon intensity."""

    above: float
    kw: Kw


class MeaningsConfig(_Strict):
    """What OpenADR payloads that carry no power of their own mean here. What is not set is not acted on."""

    nominal_kw: Kw | None = None  # what relative setpoints and level offsets are relative to
    offset_step_kw: Kw | None = None  # one level of CONTROL_LEVEL_OFFSET
    levels_kw: Annotated[tuple[Kw, ...], Field(min_length=3, max_length=3)] | None = None  # SIMPLE 1, 2, 3
    alerts_kw: dict[Alert, Kw] = Field(default_factory=dict)
    price_kw: Annotated[tuple[StepConfig, ...], Field(max_length=32)] = ()
    carbon_kw: Annotated[tuple[StepConfig, ...], Field(max_length=32)] = ()

    @model_validator(mode="after")
    def _curves_fall(self) -> "MeaningsConfig":
        for name, steps in (("price_kw", self.price_kw), ("carbon_kw", self.carbon_kw)):
            above, limits_kw = [step.above for step in steps], [step.kw for step in steps]
            if above != sorted(set(above)) or limits_kw != sorted(limits_kw, reverse=True):
                raise ValueError(
                    f"{name}: order the steps by `above`, each with no more kW than the one before"
                )
        if self.levels_kw is not None and list(self.levels_kw) != sorted(self.levels_kw, reverse=True):
            raise ValueError(
                "levels_kw: a higher level may not allow more than a lower one; order them downwards"
            )
        if self.offset_step_kw is not None and self.nominal_kw is None:
            raise ValueError("offset_step_kw: an offset from what? set nominal_kw as well")
        return self


class SourceConfig(_Strict):
    """What all sources have in common.

    Attributes:
        ramp: None: the site's.
        urgent_ramp: of alerts, SIMPLE 3, and DSX targets that are not best effort; None: as `ramp`.
        heartbeat_timeout_s: silent for longer means failsafe; null: its silence means nothing.
    """

    name: TopicName
    ramp: RampConfig | None = None
    urgent_ramp: RampConfig | None = None
    heartbeat_timeout_s: Timeout | None = 5.0


class MqttSourceConfig(SourceConfig):
    """What sources over MQTT have in common.

    Attributes:
        mqtt: the site's broker; None: the block's own.
        heartbeat_topic: where the site's application says that it lives.
        canary_topic: one that this controller may write and read: proves that what is sent also arrives.
    """

    mqtt: MqttConfig | None = None
    heartbeat_topic: OneTopic | None = None
    canary_topic: OneTopic | None = None

    @model_validator(mode="after")
    def _told_apart(self) -> "MqttSourceConfig":
        if self.canary_topic is not None and self.canary_topic == self.heartbeat_topic:
            raise ValueError("canary_topic: the same as heartbeat_topic; give the canary a topic of its own")
        return self


class OpenAdrMqttConfig(MqttSourceConfig):
    """OpenADR 3 notifications over topics that site and block agreed on."""

    kind: Literal["openadr_mqtt"]
    topics: Topics
    randomize_reductions: bool = False  # true: randomizeStart may also move what takes power away

    @model_validator(mode="after")
    def _watched_by_heartbeat(self) -> "OpenAdrMqttConfig":
        if self.heartbeat_timeout_s is not None and self.heartbeat_topic is None:
            raise ValueError(
                "heartbeat_topic: missing: bare topics have no other sign of life; name it,"
                " or set heartbeat_timeout_s: null"
            )
        return self


class OpenAdrVtnConfig(SourceConfig):
    """An OpenADR 3.1 VTN: REST for the truth, its notifier for speed. A whole round is its sign of life."""

    kind: Literal["openadr_vtn"]
    randomize_reductions: bool = False
    url: str
    client_id: str
    client_secret_file: Path
    ven_name: str
    resources: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    token_url: str | None = None
    scope: str | None = None
    ca: File | None = None
    cert: File | None = None
    key: File | None = None
    plain: bool = False  # http:// and mqtt://: laboratories only
    poll_s: Annotated[float, Field(ge=1, le=3600)] = 20.0
    heartbeat_timeout_s: Timeout | None = 60.0

    @model_validator(mode="after")
    def _polled_in_time(self) -> "OpenAdrVtnConfig":
        if self.heartbeat_timeout_s is not None and self.heartbeat_timeout_s < 2.0 * self.poll_s:
            raise ValueError(
                f"heartbeat_timeout_s: {self.heartbeat_timeout_s:g} is less than two polls of"
                f" {self.poll_s:g} s; poll more often or allow a longer silence"
            )
        return self


class DsxFlexConfig(MqttSourceConfig):
    """NVIDIA DSX Flex 1.7.0, in the role of the agent.

    Attributes:
        agent_id: our name on the bus.
        role: how the site spells the agent's role.
        feeds: share of the block's power that each feed carries, by tag: 1.0 for a single feed.
        tells: false: another source of this agent_id tells status and breach; two voices would contradict.
        publishers: the grid operator (ISV) that may steer us, with a file of its public keys; one per source.
        signing_key: PEM that we sign with.
        signing_kid: its name in the key set that others have of us.
        accept_unsigned: laboratories, and sites whose broker alone decides who speaks.
        age_max_s: a command may be that old on arrival.
        infra_id: None: we only advise; else we carry out shed hints for our nodes and GPUs, in this name,
        advisers: and these agents' hints, each with a file of its public keys.
        alert_qos: 1 for brokers without QoS 2 (nats-server before 2.10).
        period_s: a status at least that often.
    """

    kind: Literal["dsx_flex"]
    heartbeat_timeout_s: Timeout | None = 30.0  # operators repeat themselves at a pace of their own
    agent_id: TopicName
    role: Literal["dsx-flex-agent", "poweragent"] = AGENT_SPELLINGS[0]
    feeds: Annotated[dict[str, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=8)]
    tells: bool = True
    publishers: Annotated[dict[TopicName, Path | None], Field(min_length=1, max_length=16)]
    signing_key: Path | None = None
    signing_kid: str | None = None
    accept_unsigned: bool = False
    age_max_s: Seconds = 30.0
    infra_id: TopicName | None = None
    advisers: Annotated[dict[TopicName, Path | None], Field(max_length=16)] = Field(default_factory=dict)
    alert_qos: Literal[1, 2] = 2
    period_s: Annotated[float, Field(ge=1, le=300)] = 10.0

    @model_validator(mode="after")
    def _one_operator(self) -> "DsxFlexConfig":
        if len(self.publishers) > 1:
            raise ValueError(
                "publishers: in one source the latest target of any of them would replace the others';"
                " give each operator a source of its own: the lowest limit binds"
            )
        return self

    @model_validator(mode="after")
    def _signed_both_ways(self) -> "DsxFlexConfig":
        if (self.infra_id is None) != (not self.advisers):
            raise ValueError(
                "infra_id, advisers: give both, or neither: hints are carried out for those named"
            )
        if (self.signing_key is None) != (self.signing_kid is None):
            raise ValueError("signing_key, signing_kid: give both, or neither")
        if self.accept_unsigned:
            return self
        if self.signing_key is None and (self.tells or self.infra_id is not None):
            raise ValueError("signing_key: missing; or set accept_unsigned: true if nobody here signs")
        bare = [name for name, path in {**self.publishers, **self.advisers}.items() if path is None]
        if bare:
            raise ValueError(
                f"publishers, advisers: no keys of {', '.join(bare)};"
                " name a file, or set accept_unsigned: true"
            )
        return self


Source = Annotated[OpenAdrMqttConfig | OpenAdrVtnConfig | DsxFlexConfig, Field(discriminator="kind")]


class SiteConfig(_Strict):
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=SOURCES_MAX)]
    failsafe_kw: Kw
    failsafe_release_after_s: Seconds | None = None  # null: hold until the site is back
    ramp: RampConfig
    # commanded ramps stay this far below the agreed ones: fans and supplies move along at the meter
    ramp_margin_ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    meanings: MeaningsConfig = MeaningsConfig()

    @property
    def watched(self) -> tuple[SourceConfig, ...]:
        """Those whose silence means failsafe."""
        return tuple(source for source in self.sources if source.heartbeat_timeout_s is not None)


def site_errors(site: SiteConfig) -> Iterator[str]:
    """What only shows between the parts."""
    names = [source.name for source in site.sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"site.sources: {name!r} is used twice; give each its own name"
    if FACILITY in names:
        yield f"site.sources: {FACILITY!r} is the name of the block's own operators; choose another"
    telling = Counter(one.agent_id for one in site.sources if isinstance(one, DsxFlexConfig) and one.tells)
    for name in sorted(name for name, count in telling.items() if count > 1):
        yield (
            f"site.sources: agent_id {name!r}: two sources would tell its status, and contradict each other;"
            " set tells: false on all but the first"
        )
    if not site.watched:
        yield (
            "site.sources: none is watched, so the block would never leave its failsafe limit;"
            " give one a heartbeat_timeout_s"
        )
