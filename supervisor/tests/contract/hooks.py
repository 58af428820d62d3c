"""Tells schemathesis what the API's description cannot: which machines exist, and that a request must
neither wait without end nor use given ports of this host."""

import os
import zlib

import requests
import schemathesis

URL = os.environ["MCTL_TEST_URL"]
MACHINES = f"{URL}/v1/apps/default/machines"
NAMES = ["one", "two", "three"]
NONCE = "fly-machine-lease-nonce"


def send(method, url, body=None):
    headers = {"Authorization": f"Bearer {os.environ['MCTL_TEST_TOKEN']}"}
    return requests.request(method, url, json=body, headers=headers, timeout=60)


def create(**fields):
    config = {"init": {"exec": ["main"]}, "restart": {"policy": "no"}, "metadata": {"k": "v"}}
    return send("POST", MACHINES, {"config": config, **fields})


def ensure_started(name):
    """Starts the machine of that name, and creates it if an earlier request has destroyed it."""
    if send("POST", f"{MACHINES}/{name}/start?wait=true").status_code == 404:
        create(name=name)
        send("GET", f"{MACHINES}/{name}/wait?timeout=30")


def machine_for(value):
    """The name of an existing machine for most values; for some the value itself, which names none."""
    digest = zlib.crc32(str(value).encode("utf-8", "replace"))
    return value if digest % 16 == 0 else NAMES[digest % len(NAMES)]


def operation_id(operation):
    return operation.definition.raw.get("operationId")


@schemathesis.hook
def before_call(ctx, case, kwargs):
    operation = operation_id(case.operation)
    parameters = case.path_parameters or {}
    query = case.query or {}
    if operation in ("Machines_lease_release", "Machines_lease_show"):
        leased = create(skip_launch=True, lease_ttl=60).json()
        parameters["machine"] = leased["id"]
        if (case.headers or {}).get(NONCE):
            case.headers[NONCE] = leased["nonce"]
    elif operation.startswith("Machines_lease"):
        # Each lease is of a new machine: it would refuse the other requests of this test.
        parameters["machine"] = create(skip_launch=True).json()["id"]
    elif "machine" in parameters:
        parameters["machine"] = machine_for(parameters["machine"])
        exists = parameters["machine"] in NAMES
        if operation == "Machines_destroy" and exists:
            # It destroys a new machine, so that the others stay.
            parameters["machine"] = create(skip_launch=True).json()["id"]
        elif exists:
            ensure_started(parameters["machine"])
        if exists and "key" in parameters and zlib.crc32(parameters["key"].encode()) % 2:
            parameters["key"] = "k"
    if operation == "Tokens_revoke" and zlib.crc32(str(parameters["id"]).encode()) % 4:
        parameters["id"] = send("POST", f"{URL}/v1/tokens", {"name": "spare"}).json()["id"]
    if operation in ("Machines_logs_read", "Machines_events"):
        query.pop("follow", None)
    if operation == "Machines_wait" and "timeout" not in query:
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
    operation = operation_id(ctx.operation)
    if query and "timeout" in query and operation == "Machines_wait":
        query["timeout"] = "0.05"
    return query
