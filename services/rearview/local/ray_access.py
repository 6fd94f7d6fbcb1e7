"""Whether a Ray that runs already lets this process in, and in words what to set where it does not.

Ray asks for a token since 2.59. Without the right one `ray.init` tries for 20 s, logs each try, and raises
what its client has seen; an address where nobody listens takes it over a minute. One call to its control
service (GCS) tells in an instant.
"""

from __future__ import annotations

from collections.abc import Mapping

from rearview.errors import InvalidRequest, RearviewError, Reason

__all__ = ["check_access", "token_header"]

ANSWER_S = 5.0
TOKEN = "RAY_AUTH_TOKEN (the token itself) or RAY_AUTH_TOKEN_PATH (a file that holds it)"


def check_access(address: str) -> None:
    """Ask the GCS at `address`, `host:port`.

    Raises RearviewError: UNREACHABLE where no Ray answers, TOKEN_INVALID where it wants another token than
    the environment has, or RAY_AUTH_MODE does not fit.
    """
    header, sends_token = token_header(), _sends_token()
    if _lets_in(address, {}):
        if sends_token and not header:
            raise _invalid(f"the Ray at {address} asks for no token, and there is none: unset RAY_AUTH_MODE")
        return
    if not header:
        raise _invalid(f"the Ray at {address} wants its token: set RAY_AUTH_MODE=token and {TOKEN}")
    if not _lets_in(address, header):
        raise _invalid(f"the Ray at {address} has another token: set {TOKEN}, or mend ~/.ray/auth_token")
    if not sends_token:
        raise _invalid(f"the Ray at {address} wants its token, which is here: set RAY_AUTH_MODE=token")


def token_header() -> Mapping[str, str]:
    """What Ray would send: empty without a token. Raises RearviewError for a file that cannot be read."""
    from ray import _raylet
    from ray.exceptions import AuthenticationError

    try:
        loader = _raylet.AuthenticationTokenLoader.instance()  # type: ignore[attr-defined]
        header: Mapping[str, str] = loader.get_token_for_http_header(ignore_auth_mode=True)
    except AuthenticationError as error:
        raise _invalid(error.message) from None
    return header


def _sends_token() -> bool:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def _invalid(message: str) -> RearviewError:
    return InvalidRequest(Reason.TOKEN_INVALID, message)


def _lets_in(address: str, header: Mapping[str, str]) -> bool:
    """Whether it answers a call with `header`. Raises RearviewError for UNREACHABLE."""
    import grpc
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with grpc.insecure_channel(address) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(
                GetClusterIdRequest(), timeout=ANSWER_S, metadata=tuple(header.items())
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return False
            message = f"no Ray answers at {address} ({error.code().name}): --ray is HOST:PORT of a head's GCS"
            raise RearviewError(Reason.UNREACHABLE, message) from None
    return True
