"""Changes of the size of a session's frames: charged before they take effect, or refused.

The size is a setting, and takes effect as all others do. What is more to it is here: the tenant's quota
counts pixels, so that the directory is asked first, and the stream is not read meanwhile.
"""

from __future__ import annotations

from rearview.contract.lease import Load
from rearview.contract.settings import Settings, SettingsChange
from rearview.control.admission import Admission, quota_of
from rearview.ingress.choosing import Choosing
from rearview.ingress.leases import Leases
from rearview.ingress.session import IngressSession

__all__ = ["changed"]


async def changed(
    session: IngressSession,
    change: SettingsChange,
    admission: Admission,
    choosing: Choosing,
    leases: Leases,
) -> Settings:
    """The session's settings after `change`, their size said and charged. Raises as `charge_size` does."""

    def after() -> Settings:
        return session.spec.sized(admission.change(session.settings, change, session.spec.max_steps))

    await charge_size(session, after(), admission, choosing, leases)
    return after()  # Others may have changed meanwhile, by a stream that has taken the session over.


async def charge_size(
    session: IngressSession,
    settings: Settings,
    admission: Admission,
    choosing: Choosing,
    leases: Leases,
) -> None:
    """Charge what frames under `settings` take, if their size is another than now. Raises InvalidRequest for
    a size that is not served, Refused for one that the tenant's quota does not allow, for which a replica has
    no time, or while the directory does not answer, and LeaseLost; nothing has changed then.
    """
    spec, tenant = session.spec, session.tenant
    size = spec.size_under(settings)
    if size == session.size:
        return
    admission.check_resize(tenant, spec, size)
    load = Load.of(session.lease.load.frames_per_s, *size)
    await choosing.check_growth(session, load, settings)
    await leases.charge(spec.session_id, load, quota_of(tenant))
