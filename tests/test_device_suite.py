"""The same claims, held against everything that claims to be the device."""

import pytest

from check.device_suite import CLAIMS
from check.subjects import ModelSubject, OverlaySubject, ServerSubject

SUBJECTS = {"model": ModelSubject, "overlay": OverlaySubject, "server": ServerSubject}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_claim_holds(claim, subject):
    claim(SUBJECTS[subject])
