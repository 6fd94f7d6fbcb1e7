"""Everything that can be configured, validated once; impossible combinations are refused here.

A deployment is one complete, named YAML file (`deploy/*.yaml`) read by `load_config`. An unknown
key is an error. Every field says its unit, default and consequence in the string below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from rearview.access import STRICT, AccessConfig, LinkTls, TenantConfig
from rearview.contract.controls import MAX_CONTROLS
from rearview.contract.memories import BankPolicy, MergeMetric, PromptChange, Rewarm
from rearview.errors import ConfigError, own_words
from rearview.model_config import AdapterConfig, ModelConfig
from rearview.placement_config import PlacementConfig, ScalingConfig
from rearview.recovery_config import RecoveryConfig
from rearview.telemetry_config import TelemetryConfig

__all__ = [
    "AdapterConfig",
    "BankConfig",
    "CacheConfig",
    "DirectoryConfig",
    "IngressConfig",
    "LimitsConfig",
    "LinkConfig",
    "ModelConfig",
    "ServiceConfig",
    "SpanConfig",
    "TenantConfig",
    "Topology",
    "load_config",
]

MESSAGE_OVERHEAD_BYTES = 64 << 10
"""A message holds an image and little else."""


class _Section(BaseModel):
    model_config = STRICT


class Topology(Enum):
    """How the chain of operators is cut into spans."""

    FUSED = "fused"
    PIPELINE = "pipeline"


class BankConfig(_Section):
    """The feature bank (StreamV2V): its pool, and what sessions get that do not say otherwise."""

    default: bool = False
    """Whether sessions that name no method use the bank."""
    policy: BankPolicy = BankPolicy.MERGE
    """`merge`: old and new tokens are merged by similarity; `queue`: the last frames are kept whole."""
    interval: int = Field(default=4, ge=1)
    """Frames from one write to the next."""
    max_frames: int = Field(default=1, ge=1, le=16)
    """Frames that a queue keeps: memory and attention grow with it. The pool has room for so many."""
    merge_ratio: float = Field(default=0.5, ge=0.1, le=0.9)
    """Share of old and new tokens that each write merges away. 0.5: the bank keeps the size of one frame;
    less lets it grow to (1 - ratio) / ratio frames, for which the pool has room then."""
    metric: MergeMetric = MergeMetric.KEYS
    """Features whose likeness decides what is merged. `outputs`: the pool keeps them in all layers."""
    layers: tuple[str, ...] = ()
    """Paths in the UNet of the layers that take part, with all below them: `mid_block`, `up_blocks.1`.
    Empty: all layers. One that leads to no self-attention is refused at start-up."""
    fusion_strength: float = Field(default=0.8, ge=0.0, le=1.0)
    """How much of a matching past feature replaces the present one; 0: no fusion."""
    fusion_threshold: float = Field(default=0.98, ge=-1.0, le=2.0)
    """Cosine similarity from which a past feature matches."""
    prompt_change: PromptChange = PromptChange.KEEP
    """What happens to the bank when the prompt changes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.policy is BankPolicy.MERGE and self.max_frames != 1:
            raise ValueError("bank.max_frames is for bank.policy queue; a merged bank has 1")
        return self


class CacheConfig(_Section):
    """The temporal cache (Live2Diff): its pool, and what sessions get that do not say otherwise.

    Per session and denoising step it holds `sink_frames + ring_frames` frames of keys and values: 1.4 GiB
    for Stable Diffusion 1.5 at 512 x 512 in float16, and linear in pixels, frames and bytes of `storage`.
    """

    default: bool = False
    """Whether sessions that name no method use the cache. The model must have motion modules then."""
    sink_frames: int = Field(default=8, ge=1, le=32)
    """First frames, which stay and see each other: a session's first picture waits for so many frames."""
    ring_frames: int = Field(default=8, ge=1, le=32)
    """Last frames, the present one included. With `sink_frames` no more than the motion modules know."""
    storage: Literal["auto", "float32", "float16", "bfloat16", "float8"] = "auto"
    """How keys and values are kept. `auto`: as `model.dtype`; `float8` halves float16 at some loss."""
    prompt_change: Rewarm = Rewarm.SHADOW
    """What happens to the cache when the prompt changes: `reset` waits for `sink_frames` frames, `shadow`
    takes over once it has seen them, `keep` lets the old first frames stay."""
    scene_cut: Rewarm = Rewarm.SHADOW
    """The same, when the scene changes."""


class SpanConfig(_Section):
    """One span: the operators of one deployment, and what its replicas get."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")
    """Name of the span, of its deployment and of its metrics label."""
    operators: tuple[str, ...] = Field(min_length=1)
    """The operators it owns, in order: `encode`, `denoise-0`, …, `decode`."""
    replicas: int = Field(default=1, ge=1, le=1024)
    """Number of replicas; with `max_replicas` the number at the start."""
    max_replicas: int | None = Field(default=None, ge=1, le=1024)
    """Set: the deployment scales up to this by what its sessions declare (`scaling`)."""
    min_replicas: int | None = Field(default=None, ge=0, le=1024)
    """The fewest that it scales down to. 0: none while nobody has asked for a session for `scaling.idle_s`;
    the first session after that waits for a start. None: `replicas`."""
    sessions_per_replica: float | None = Field(default=None, gt=0)
    """The most sessions per replica that autoscaling aims at. None: as many as slots and time allow."""
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = 16
    """Sessions that one replica holds. `auto`: as many as its memory has room for, at most 64, and 16 where
    that is the host's."""
    spares: int = Field(default=0, ge=0, le=64)
    """How many of the replicas hold no session, so that those of one that is lost find room at once."""
    max_surge_percent: int = Field(default=0, ge=0, le=100)
    """How many more replicas an update may start before old ones stop. Above 0 it waits for room for one."""
    num_threads: int = Field(default=1, ge=1, le=256)
    """torch threads of one replica."""
    num_cpus: float = Field(default=0.1, ge=0)
    """Ray CPUs reserved for one replica (logical)."""
    num_gpus: float = Field(default=0.0, ge=0)
    """Ray GPUs reserved for one replica; fractions share a GPU."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further Ray resources, to tie the span to some nodes."""
    max_batch: int = Field(default=16, ge=1, le=256)
    """Most rows in one forward."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of `/metrics` of its replicas, for scrapers that must know it; 0 takes a free one. Set: a host
    takes one replica of the span, so that the port is its own."""

    @property
    def fixed_slots(self) -> int | None:
        """None: `auto`."""
        return None if self.slots == "auto" else self.slots

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"span {self.name}: max_replicas {self.max_replicas} < replicas {self.replicas}")
        if self.min_replicas is not None and self.max_replicas is None:
            raise ValueError(f"span {self.name}: min_replicas needs max_replicas")
        if self.min_replicas is not None and self.min_replicas > self.replicas:
            raise ValueError(f"span {self.name}: min_replicas {self.min_replicas} > replicas {self.replicas}")
        if self.spares >= self.replicas:
            raise ValueError(f"span {self.name}: spares {self.spares}, of {self.replicas} replicas")
        return self


class IngressConfig(_Section):
    """The edge: the gRPC port, its processes and how long it waits."""

    host: str = "127.0.0.1"
    """Address to listen on. `0.0.0.0` needs `tenants_file`, else everyone may use the GPUs."""
    port: int = Field(default=50051, ge=0, le=65535)
    """gRPC port; 0 takes a free one, found in the ingress's Serve metadata."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of `/metrics` of the ingress; 0 takes a free one."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Ingress replicas; on Linux they can share the port. More than one needs `directory.redis_url`."""
    num_cpus: float = Field(default=0.1, ge=0)
    """Ray CPUs reserved for one ingress replica (logical)."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further Ray resources, to tie the ingress to some nodes."""
    tls_cert_file: Path | None = None
    """PEM certificate chain; with `tls_key_file` the port speaks TLS."""
    tls_key_file: Path | None = None
    """PEM private key."""
    reflection: bool = False
    """Whether gRPC server reflection answers, to those with a token: for tools that ask what is served."""
    idle_timeout_s: float = Field(default=10.0, gt=0)
    """A stream from which nothing comes for so long is ended."""
    open_timeout_s: float = Field(default=5.0, gt=0)
    """A stream whose first message does not come for so long is ended."""
    resume_grace_s: float = Field(default=60.0, ge=0)
    """A session whose connection was lost is kept for so long."""
    drain_grace_s: float = Field(default=20.0, ge=0)
    """How long streams may finish when the ingress is told to stop."""
    codec_threads: int = Field(default=2, ge=1, le=64)
    """Threads that decode and encode images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("set both tls_cert_file and tls_key_file, or neither")
        return self


class LimitsConfig(_Section):
    """How much one session, frame or prompt may take."""

    max_image_bytes: int = Field(default=1 << 20, ge=1024)
    """Bytes of one encoded frame. A raw one is bounded by `max_pixels`."""
    max_pixels: int = Field(default=1024 * 1024, ge=64 * 64)
    """Width times height of one frame, checked before decoding."""
    max_prompt_bytes: int = Field(default=2048, ge=16)
    """UTF-8 bytes of one prompt."""
    max_bad_frames: int = Field(default=10, ge=1)
    """A stream ends after so many unusable frames in a row."""
    max_in_flight: int = Field(default=4, ge=1, le=64)
    """Frames of one session that are between the ingress and the last span at a time."""
    max_waiting: int = Field(default=4, ge=1, le=256)
    """Frames of one session that may wait at the ingress (policies `lossless` and `deadline`)."""

    @property
    def max_picture_bytes(self) -> int:
        """The largest picture: encoded, raw RGB, or opaque."""
        return max(self.max_image_bytes, 3 * self.max_pixels)


class DirectoryConfig(_Section):
    """Where leases of sessions are kept."""

    redis_url: str | None = None
    """`redis://…` or `rediss://…`. Without it leases live in the memory of the one ingress."""
    lease_s: float = Field(default=15.0, gt=1.0)
    """A session whose ingress does not renew its lease for so long takes no more of capacity and quotas."""
    key_prefix: str = "rearview"
    """First part of every Redis key."""
    takes_over: bool = False
    """Whether several clusters of this name may share the Redis, as in an upgrade: sessions go on across
    them, and once a newer cluster serves the older ones drain. They need one links' secret and a network."""


class LinkConfig(_Section):
    """How replicas reach each other."""

    host: str = "127.0.0.1"
    """Address on which replicas take links from other nodes."""
    unix_dir: str | None = None
    """Folder of the Unix sockets used inside a node; default: a private folder under the temp dir."""
    secret: str = ""
    """Shared secret of all replicas of the service. Empty: made at start, and kept as long as the Ray is."""
    secret_file: Path | None = None
    """Holds it instead: the secret, and on a second line the one before, which is still taken. Read again
    when it changes."""
    tls: LinkTls | None = None
    """Set: links between hosts speak TLS."""
    max_frame_bytes: int = Field(default=32 << 20, ge=1 << 16)
    """Largest message on a link; a larger one closes it. No less than the frames that `limits` let in."""
    orphan_grace_s: float = Field(default=60.0, ge=0)
    """A session whose ingress was lost keeps its slots for so long, seconds, so that another one can adopt
    it, unless a new session needs one. 0: the slots are free at once, and what it remembered is gone."""


class ServiceConfig(_Section):
    """One complete deployment."""

    name: str = Field(default="rearview", pattern=r"^[a-z][a-z0-9-]{0,39}$")
    """Name of the Serve application."""
    model: ModelConfig = ModelConfig()
    topology: Topology = Topology.FUSED
    """`fused`: one span owns every operator. `pipeline`: `spans`, or one span per operator."""
    spans: tuple[SpanConfig, ...] = ()
    """The cut. Empty: made from `topology` with one thread and one replica each."""
    ingress: IngressConfig = IngressConfig()
    limits: LimitsConfig = LimitsConfig()
    bank: BankConfig | None = None
    """Set: sessions may use a feature bank, and every slot has room for one."""
    cache: CacheConfig | None = None
    """Set: sessions may use a temporal cache if the model has motion modules, and every slot has room for
    one per denoising step."""
    directory: DirectoryConfig = DirectoryConfig()
    link: LinkConfig = LinkConfig()
    placement: PlacementConfig = PlacementConfig()
    scaling: ScalingConfig = ScalingConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    access: AccessConfig = AccessConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    tenants_file: Path | None = None
    """YAML list of tenants. Without it everyone is the tenant `local`, and only loopback is served."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        operators = self.operators
        spans = self.spans or _default_spans(self.topology, operators)
        object.__setattr__(self, "spans", spans)
        if tuple(name for span in spans for name in span.operators) != operators:
            owned = f"{', '.join(operators)} in this order, each once"
            raise ValueError(f"spans must own {owned} (model.max_steps is {self.model.max_steps})")
        if len({span.name for span in spans}) != len(spans):
            raise ValueError("two spans have the same name")
        if self.topology is Topology.FUSED and len(spans) != 1:
            raise ValueError(f"topology fused has one span, spans has {len(spans)}: set topology: pipeline")
        if self.topology is Topology.PIPELINE and len(spans) < 2:
            raise ValueError("topology pipeline needs at least two spans: set topology: fused")
        if self.ingress.replicas > 1 and self.directory.redis_url is None:
            raise ValueError("ingress.replicas > 1 needs directory.redis_url: leases must be shared")
        if self.ingress.replicas > 1 and self.ingress.port == 0:
            raise ValueError("ingress.replicas > 1 needs a fixed ingress.port to share")
        if self.bank and self.cache and self.bank.default and self.cache.default:
            raise ValueError("bank.default and cache.default: sessions that name no method get one of them")
        max_load, target = self.placement.max_load, self.scaling.target_share
        if max_load is not None and max_load < target and any(span.max_replicas for span in spans):
            raise ValueError(
                f"placement.max_load {max_load} < scaling.target_share {target}: nothing would grow"
            )
        if self.access.jwt is not None and self.tenants_file is None:
            raise ValueError("access.jwt needs tenants_file: it says what each tenant may do")
        if self.access.tls_client_ca_file is not None and self.ingress.tls_cert_file is None:
            raise ValueError("access.tls_client_ca_file needs ingress.tls_cert_file")
        loopback = self.ingress.host in ("127.0.0.1", "localhost", "::1")
        if self.tenants_file is None and not loopback:
            raise ValueError(f"ingress.host {self.ingress.host} is open to others: set tenants_file")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        needed = self.max_message_bytes
        if self.link.max_frame_bytes < needed:
            raise ValueError(
                f"link.max_frame_bytes {self.link.max_frame_bytes} < {needed}, which frames may take by "
                f"limits.max_image_bytes {self.limits.max_image_bytes}, "
                f"limits.max_pixels {self.limits.max_pixels} and {len(self.model.controls)} model.controls"
            )
        return self

    @property
    def max_message_bytes(self) -> int:
        """The largest message that carries a frame, with a picture for each of its controls."""
        shown = min(len(self.model.controls), MAX_CONTROLS)
        return (1 + shown) * self.limits.max_picture_bytes + MESSAGE_OVERHEAD_BYTES

    @property
    def operators(self) -> tuple[str, ...]:
        """Names of the chain's operators, in order."""
        return ("encode", *(f"denoise-{k}" for k in range(self.model.max_steps)), "decode")


def _default_spans(topology: Topology, operators: tuple[str, ...]) -> tuple[SpanConfig, ...]:
    if topology is Topology.FUSED:
        return (SpanConfig(name="fused", operators=operators),)
    return tuple(SpanConfig(name=name, operators=(name,)) for name in operators)


def load_config(source: Path | Mapping[str, Any]) -> ServiceConfig:
    """Read and check a configuration.

    `source` is a YAML file or its content. Raises ConfigError naming file and keys.
    """
    if isinstance(source, Path):
        try:
            content = yaml.safe_load(source.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{source}: {error}") from None
        where = str(source)
    else:
        content, where = dict(source), "configuration"
    try:
        return ServiceConfig.model_validate(content or {})
    except ValidationError as error:
        lines = (
            f"{'.'.join(str(part) for part in item['loc']) or 'configuration'}: {own_words(item['msg'])}"
            for item in error.errors()
        )
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None
