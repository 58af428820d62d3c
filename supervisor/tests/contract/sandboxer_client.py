"""Suspends and resumes a machine with sandboxer, a client from PyPI for Fly Machines and other
providers. It reads address, token and app from the environment, as for Fly."""

import os
import time

from sandboxer.config import ProviderConfig
from sandboxer.errors import NotFoundError, ProviderError
from sandboxer.providers.fly_machines import FlyMachinesProvider
from sandboxer.types import CreateSandboxRequest


def poll(what, is_reached):
    deadline = time.monotonic() + 60
    while not is_reached():
        assert time.monotonic() < deadline, f"waited 60 s for {what}"
        time.sleep(0.05)


def main():
    provider = FlyMachinesProvider(ProviderConfig())
    request = CreateSandboxRequest(template=os.environ["MCTL_TEST_IMAGE"], cpus=1, memory_mb=256)
    sandbox, _ = provider.create_sandbox(request)

    def state():
        url = f"{provider._base}/v1/apps/{provider._app}/machines/{sandbox.id}"
        return provider._hc.do("GET", url, provider._hdr())["state"]

    poll("the start", lambda: state() == "started")
    assert sandbox.is_running()
    assert sandbox.info().memory_mb == 256
    sandbox.pause()
    poll("the suspend", lambda: state() == "suspended")
    sandbox.resume()
    poll("the resume", lambda: state() == "started")
    assert [listed.id for listed in provider.list_sandboxes()] == [sandbox.id]
    sandbox.kill()
    assert provider.list_sandboxes() == []
    assert state() == "destroyed"
    for machine_id, error in [("no-such-machine", NotFoundError), (sandbox.id, ProviderError)]:
        try:
            provider.attach_sandbox(machine_id).pause()
        except error:
            continue
        raise AssertionError(f"{machine_id} was paused")
    print("done")


main()
