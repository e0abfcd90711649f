"""What an error of Ray says: the actor is gone, it answered with an error of its own, or Ray lost something on the way."""

from __future__ import annotations

from ray import exceptions

# Its process is no more, or was never started, as Ray sees it: every call to it fails like that, so it must be replaced.
# One that Ray's memory monitor killed is no RayActorError.
GONE = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.RuntimeEnvSetupError,
    exceptions.ActorUnschedulableError,
    exceptions.TaskUnschedulableError,
    exceptions.ActorPlacementGroupRemoved,
    exceptions.TaskPlacementGroupRemoved,
    exceptions.AsyncioActorExit,
    exceptions.ActorHandleNotFoundError,
)
# The call was done, and raised something: what it was done for may be to blame.
ANSWERED = (
    exceptions.RayTaskError,
    exceptions.UnserializableException,
    exceptions.CrossLanguageError,
    exceptions.UserCodeException,
)
# Ray's memory, disk or connections: nothing that was in hand is to blame, and the actor lives.
RAYS_OWN = (
    exceptions.ObjectStoreFullError,
    exceptions.OutOfDiskError,
    exceptions.ObjectLostError,
    exceptions.RaySystemError,
    exceptions.RpcError,
    exceptions.GetTimeoutError,
    exceptions.PlasmaObjectNotAvailable,
    exceptions.PendingCallsLimitExceeded,
    exceptions.ObjectRefStreamEndOfStreamError,
    exceptions.OufOfBandObjectRefSerializationException,
    exceptions.AuthenticationError,
    exceptions.TaskCancelledError,
    exceptions.ActorAlreadyExistsError,
)
