"""Model and overlay, model and server, side by side through random requests and faults."""

import os

from hypothesis import HealthCheck, settings

from check.stateful import DeviceMachine
from check.subjects import ModelSubject, OverlaySubject, ServerSubject

EXAMPLES = int(os.environ.get("COWPROOF_EXAMPLES", "200"))


def profile(share):
    """Bounded by examples, not by time; hypothesis' own database replays what failed before."""
    return settings(
        max_examples=max(EXAMPLES * share // 100, 1),
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class ModelMachine(DeviceMachine):
    make = ModelSubject


class OverlayMachine(DeviceMachine):
    make = OverlaySubject


class ServerMachine(DeviceMachine):
    make = ServerSubject


TestTheModelAgreesWithItself = ModelMachine.TestCase
TestTheModelAgreesWithItself.settings = profile(20)
TestTheOverlayDoesWhatTheModelDoes = OverlayMachine.TestCase
TestTheOverlayDoesWhatTheModelDoes.settings = profile(100)
TestTheServerDoesWhatTheModelDoesThroughTwoConnections = ServerMachine.TestCase
TestTheServerDoesWhatTheModelDoesThroughTwoConnections.settings = profile(50)
