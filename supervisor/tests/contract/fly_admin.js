// Takes a machine from create to destroy with fly-admin, a client of the Fly Machines API from npm.
// The client does not know mctl: it gets an address, a token and an app, as for Fly.
'use strict';

const assert = require('node:assert/strict');
const { createRequire } = require('node:module');

const installed = createRequire(`${process.env.MCTL_TEST_TOOLS}/fly-admin/`);
const Client = installed('fly-admin/dist/client').default;

const app_name = 'default';
const fly = new Client(process.env.FLY_API_TOKEN, { apiUrl: process.env.FLY_API_HOSTNAME });

// A request for which the client has no method, made as its own methods make theirs.
const call = (machine_id, method, path, body) =>
  fly.restOrThrow(`apps/${app_name}/machines/${machine_id}${path}`, method, body);

const refusal = async (promise) => {
  const error = await promise.then(() => null, (error) => error);
  assert(error, 'the request was not refused');
  return error.message;
};

async function main() {
  const created = await fly.Machine.createMachine({
    app_name,
    name: 'contract',
    region: null,
    config: {
      image: process.env.MCTL_TEST_IMAGE,
      init: { exec: JSON.parse(process.env.MCTL_TEST_MAIN) },
      env: { COLOUR: 'green' },
      guest: { cpu_kind: 'shared', cpus: 1, memory_mb: 256 },
      restart: { policy: 'no' },
      auto_destroy: false,
      services: null,
      stop_config: { signal: 'SIGTERM', timeout: 2_000_000_000 },
    },
  });
  const machine_id = created.id;
  assert.equal(created.name, 'contract');
  assert.equal(created.config.env.COLOUR, 'green');
  assert(created.instance_id && created.created_at && created.image_ref.digest);
  const machine = { app_name, machine_id };
  const wait = (state, instance_id) =>
    fly.Machine.waitMachine({ ...machine, state, timeout: '60s', ...(instance_id && { instance_id }) });
  const getMachine = () => fly.Machine.getMachine(machine);

  await wait('started', created.instance_id);
  assert.equal((await getMachine()).state, 'started');
  assert.deepEqual((await fly.Machine.listMachines(app_name)).map((listed) => listed.id), [machine_id]);
  await fly.Machine.startMachine(machine); // it is started already

  const ran = await call(machine_id, 'POST', '/exec', { command: ['echo', 'hello'], timeout: 20 });
  assert.match(ran.stdout, /hello/);
  assert.equal(ran.exit_code, Number(process.env.MCTL_TEST_EXIT_CODE));
  assert.equal(ran.exit_signal, 0);
  assert.match((await call(machine_id, 'POST', '/exec', { cmd: "echo 'two words'" })).stdout, /two words/);
  assert(Array.isArray(await fly.Machine.listProcesses(machine)));
  await fly.Machine.signalMachine({ ...machine, signal: 'SIGUSR1' });

  await call(machine_id, 'POST', '/metadata/team', { value: 'shop' });
  assert.deepEqual(await call(machine_id, 'GET', '/metadata'), { team: 'shop' });
  const listed = (key, value) => fly.Machine.listMachines({ app_name, [`metadata.${key}`]: value });
  assert.equal((await listed('team', 'shop')).length, 1);
  assert.equal((await listed('team', 'other')).length, 0);
  await call(machine_id, 'DELETE', '/metadata/team');
  assert.deepEqual(await call(machine_id, 'GET', '/metadata'), {});

  await call(machine_id, 'POST', '/suspend');
  await wait('suspended');
  assert.match(await refusal(call(machine_id, 'POST', '/exec', { command: ['true'] })), /^412: .*suspended/);
  const resumed = await fly.Machine.startMachine(machine);
  assert.equal(resumed.previous_state, 'suspended');
  await wait('started');
  const kinds = (await fly.Machine.listEvents(machine)).map((event) => event.start && event.start.kind);
  assert.equal(kinds.find(Boolean), 'resumed');

  await fly.Machine.cordonMachine(machine);
  assert.equal((await getMachine()).cordoned, true);
  await fly.Machine.uncordonMachine(machine);
  const lease = await fly.Machine.acquireLease({ ...machine, ttl: 5 });
  assert.equal(lease.status, 'success');
  assert.equal((await fly.Machine.getLease(machine)).data.expires_at, lease.data.expires_at);
  assert.match(await refusal(fly.Machine.stopMachine(machine)), /^409: /);
  const deadline = Date.now() + 60_000;
  while (await fly.Machine.getLease(machine).then(() => true, () => false)) {
    assert(Date.now() < deadline, 'waited 60 s for the lease to expire');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }

  const updated = await fly.Machine.updateMachine({
    ...machine,
    config: { ...created.config, metadata: { version: '2' } },
  });
  assert.notEqual(updated.instance_id, created.instance_id);
  await wait('started', updated.instance_id);
  assert.equal((await fly.Machine.listVersions(machine)).length, 2);
  await fly.Machine.restartMachine({ ...machine, timeout: '2s' });
  await wait('started');

  assert.match(await refusal(fly.Machine.deleteMachine(machine)), /^412: /);
  await fly.Machine.stopMachine({ ...machine, timeout: '2s' });
  await wait('stopped');
  await fly.Machine.deleteMachine(machine);
  await wait('destroyed');
  assert.deepEqual(await fly.Machine.listMachines(app_name), []);

  const second = await fly.Machine.createMachine({
    app_name,
    config: { image: process.env.MCTL_TEST_IMAGE, init: { exec: JSON.parse(process.env.MCTL_TEST_MAIN) } },
  });
  await fly.Machine.waitMachine({ app_name, machine_id: second.id, state: 'started', timeout: '60' });
  await fly.Machine.deleteMachine({ app_name, machine_id: second.id, force: true });
  assert.deepEqual(await fly.Machine.listMachines(app_name), []);

  const intruder = new Client('no-such-token', { apiUrl: process.env.FLY_API_HOSTNAME });
  assert.match(await refusal(intruder.Machine.listMachines(app_name)), /^401: /);
  console.log('done');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
