"""What the description can't tell schemathesis: which machines there are, and that a test must
neither wait for ever nor reach for ports of this host."""

import os
import zlib

import requests
import schemathesis

URL = os.environ["MCTL_TEST_URL"]
MACHINES = f"{URL}/v1/apps/default/machines"
NAMES = ["one", "two", "three"]
NONCE = "fly-machine-lease-nonce"


def ask(method, url, body=None):
    headers = {"Authorization": f"Bearer {os.environ['MCTL_TEST_TOKEN']}"}
    return requests.request(method, url, json=body, headers=headers, timeout=15)


def make(**more):
    config = {"init": {"exec": ["main"]}, "restart": {"policy": "no"}, "metadata": {"k": "v"}}
    return ask("POST", MACHINES, {"config": config, **more})


def ready(name):
    """A started machine of that name, whatever earlier requests did to it."""
    if ask("POST", f"{MACHINES}/{name}/start?wait=true").status_code == 404:
        make(name=name)
        ask("GET", f"{MACHINES}/{name}/wait?timeout=10")


def chosen(value):
    """One of the machines for most values; a stranger's name for some."""
    digest = zlib.crc32(str(value).encode("utf-8", "replace"))
    return value if digest % 16 == 0 else NAMES[digest % len(NAMES)]


def operation_id(operation):
    return operation.definition.raw.get("operationId")


@schemathesis.hook
def before_call(ctx, case, kwargs):
    where = operation_id(case.operation)
    parameters = case.path_parameters or {}
    query = case.query or {}
    if where in ("Machines_lease_release", "Machines_lease_show"):
        leased = make(skip_launch=True, lease_ttl=60).json()
        parameters["machine"] = leased["id"]
        if (case.headers or {}).get(NONCE):
            case.headers[NONCE] = leased["nonce"]
    elif where.startswith("Machines_lease"):
        # A lease keeps others out, and those are tests, too.
        parameters["machine"] = make(skip_launch=True).json()["id"]
    elif "machine" in parameters:
        parameters["machine"] = chosen(parameters["machine"])
        known = parameters["machine"] in NAMES
        if where == "Machines_destroy" and known:
            # It should have something to destroy, and leave the others there.
            parameters["machine"] = make(skip_launch=True).json()["id"]
        elif known:
            ready(parameters["machine"])
        if known and "key" in parameters and zlib.crc32(parameters["key"].encode()) % 2:
            parameters["key"] = "k"
    if where == "Tokens_revoke" and zlib.crc32(str(parameters["id"]).encode()) % 4:
        parameters["id"] = ask("POST", f"{URL}/v1/tokens", {"name": "spare"}).json()["id"]
    if where in ("Machines_logs_read", "Machines_events"):
        query.pop("follow", None)
    if where == "Machines_wait" and "timeout" not in query:
        query["timeout"] = "0.05"
        case.query = query


@schemathesis.hook
def map_body(ctx, body):
    if not isinstance(body, dict):
        return body
    config = body.get("config")
    if isinstance(config, dict):
        services = config.get("services")
        for service in services if isinstance(services, list) else []:
            ports = service.get("ports") if isinstance(service, dict) else []
            for port in ports if isinstance(ports, list) else []:
                if isinstance(port, dict):
                    port.pop("start_port", None)
                    port.pop("end_port", None)
                if isinstance(port, dict) and isinstance(port.get("port"), int):
                    port["port"] = 0
                    port.pop("address", None)
    return body


@schemathesis.hook
def map_query(ctx, query):
    where = operation_id(ctx.operation)
    if query and "timeout" in query and where == "Machines_wait":
        query["timeout"] = "0.05"
    return query
