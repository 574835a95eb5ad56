// A plant's OPC UA server on node-opcua, told over standard input what to say: see tests/node_peers.py.
//
// Environment, JSON in PLANT: port, host; policies and modes (names); certificate, key (PEM files), pki
// (folder; its trusted/certs holds the clients that may come in); users {name: password}, userPki; anonymous;
// limits (server capabilities); trustAll.
//
// Verbs: set {name, value, status, source}; get {name}; array {name, values}; many {count} and stir {count, from}
// for a crowd of variables; calls (of the method so far); state {name}, of the server; sessions; drop (end them
// all); forget (their subscriptions alone); stop; start; writes (of clients to the nodes of the control block and to
// the setpoint, in their order), and seen (forget those).
//
// Cdu.Timer is what SunSpec calls a reversion timer: so many seconds after it was written last, Cdu.Enable turns
// false and Cdu.Setpoint goes to Cdu.Fallback.
"use strict";
const readline = require("node:readline");
const {
  DataType, MessageSecurityMode, OPCUACertificateManager, OPCUAServer, SecurityPolicy, ServerState, StatusCodes,
  VariantArrayType,
} = require("node-opcua");

const plant = JSON.parse(process.env.PLANT);
const NAMESPACE = "urn:powerblock:cdu";
const nodes = new Map(); // name -> {node, type}
const calls = [];
let server, namespace, device;

const VARIABLES = [
  ["Cdu.CoolantSupply", "Double", 32.0], ["Cdu.CoolantReturn", "Double", 44.5], ["Cdu.Flow", "Float", 1200],
  ["Cdu.HeatKw", "Double", 812.5], ["Cdu.CapacityKw", "Double", 1500], ["Cdu.PumpSpeedPercent", "Int16", 65],
  ["Cdu.Running", "Boolean", true], ["Cdu.Name", "String", "north"], ["Cdu.Mode", "UInt16", 1],
  ["Cdu.Setpoint", "Float", 30], ["Cdu.Stubborn", "Double", 1], ["Cdu.Locked", "Double", 1],
  ["Cdu.Serial", "UInt64", [0, 77]],
  ["Cdu.Command", "UInt16", 0], ["Cdu.Beat", "UInt16", 0], ["Cdu.Timer", "Double", 0], ["Cdu.Fallback", "Float", 20],
  ["Cdu.Enable", "Boolean", false], ["Cdu.Remote", "Boolean", true],
];
const CONTROL = ["Cdu.Command", "Cdu.Beat", "Cdu.Timer", "Cdu.Fallback", "Cdu.Enable", "Cdu.Setpoint"];
let writes = [], timer;

function wind(seconds) {
  clearTimeout(timer);
  timer = setTimeout(() => {
    VERBS.set({ name: "Cdu.Enable", value: false });
    VERBS.set({ name: "Cdu.Setpoint", value: VERBS.get({ name: "Cdu.Fallback" }).value });
  }, seconds * 1000);
}

function record(name) {
  const { node } = nodes.get(name);
  const plain = node.writeValue.bind(node);
  node.writeValue = (context, wish, ...rest) => {
    writes.push([name.slice(4), wish.value.value]);
    if (name === "Cdu.Timer") wind(wish.value.value);
    return plain(context, wish, ...rest);
  };
}

function add(name, type, value) {
  const node = namespace.addVariable({
    organizedBy: device, browseName: name, nodeId: `s=${name}`, dataType: type, minimumSamplingInterval: 20,
    accessLevel: name === "Cdu.Locked" ? "CurrentRead" : "CurrentRead | CurrentWrite",
    value: { dataType: DataType[type], arrayType: VariantArrayType.Scalar, value },
  });
  nodes.set(name, { node, type });
  return node;
}

async function start() {
  const manager = new OPCUACertificateManager({
    rootFolder: plant.pki, automaticallyAcceptUnknownCertificate: plant.trustAll ?? false,
    disableFileWatchers: true,
  });
  const userManager = new OPCUACertificateManager({
    rootFolder: plant.userPki ?? `${plant.pki}-users`, automaticallyAcceptUnknownCertificate: false,
    disableFileWatchers: true,
  });
  await manager.initialize();
  await userManager.initialize();
  server = new OPCUAServer({
    port: plant.port, hostname: "127.0.0.1", host: "127.0.0.1",
    allowAnonymous: plant.anonymous ?? true,
    securityPolicies: (plant.policies ?? ["None"]).map((name) => SecurityPolicy[name]),
    securityModes: (plant.modes ?? ["None"]).map((name) => MessageSecurityMode[name]),
    certificateFile: plant.certificate, privateKeyFile: plant.key,
    serverCertificateManager: manager, userCertificateManager: userManager,
    serverInfo: { applicationUri: "urn:plant:cdu", productUri: "urn:plant:cdu", applicationName: { text: "Plant" } },
    serverCapabilities: plant.limits ?? {},
    userManager: { isValidUser: (user, password) => (plant.users ?? {})[user] === password },
  });
  await server.initialize();
  if (plant.noSubscriptions) server.engine.serverCapabilities.maxSubscriptions = 0;
  const space = server.engine.addressSpace;
  space.registerNamespace("urn:vendor:first");
  namespace = space.registerNamespace(NAMESPACE);
  device = namespace.addObject({ organizedBy: space.rootFolder.objects, browseName: "Cdu", nodeId: "s=Cdu" });
  nodes.clear();
  for (const [name, type, value] of VARIABLES) add(name, type, value);
  CONTROL.forEach(record);
  // says yes and does nothing: a write that only a read-back finds out
  const stubborn = nodes.get("Cdu.Stubborn").node;
  stubborn.writeValue = (_context, _value, ...rest) => {
    const callback = rest.at(-1);
    if (typeof callback === "function") return callback(null, StatusCodes.Good);
    return Promise.resolve(StatusCodes.Good);
  };
  const method = namespace.addMethod(device, {
    browseName: "SetFlow", nodeId: "s=Cdu.SetFlow",
    inputArguments: [
      { name: "flow", dataType: DataType.Float, valueRank: -1 },
      { name: "ramp", dataType: DataType.UInt16, valueRank: -1 },
    ],
    outputArguments: [{ name: "accepted", dataType: DataType.Float, valueRank: -1 }],
  });
  method.bindMethod((inputs, _context, callback) => {
    calls.push(inputs.map((input) => [DataType[input.dataType], input.value]));
    if (inputs[0].value < 0) return callback(null, { statusCode: StatusCodes.BadOutOfRange });
    callback(null, {
      statusCode: StatusCodes.Good,
      outputArguments: [{ dataType: DataType.Float, value: inputs[0].value / 2 }],
    });
  });
  await server.start();
}

function code(name) {
  const status = StatusCodes[name ?? "Good"];
  if (!status) throw new Error(`no status ${name}`);
  return status;
}

const VERBS = {
  set({ name, value, status, source }) {
    const { node, type } = nodes.get(name);
    const number = { NaN: NaN, Infinity }[value] ?? value;
    const stamp = source === undefined ? new Date() : new Date(source * 1000);
    node.setValueFromSource({ dataType: DataType[type], value: number }, code(status), stamp);
  },
  array({ name, values }) {
    const { node } = nodes.get(name);
    node.valueRank = 1;
    node.setValueFromSource({ dataType: DataType.Double, arrayType: VariantArrayType.Array, value: Float64Array.from(values) });
  },
  get({ name }) {
    const { value, statusCode } = nodes.get(name).node.readValue();
    return { value: value.value, type: DataType[value.dataType], status: statusCode.name };
  },
  calls: () => calls,
  many({ count }) {
    for (let i = 0; i < count; i++) if (!nodes.has(`Many.${i}`)) add(`Many.${i}`, "Double", i);
  },
  stir({ count, from }) { // change `count` of the many
    for (let i = 0; i < count; i++) VERBS.set({ name: `Many.${i}`, value: from + i });
  },
  sessions: () => ({
    sessions: server.engine.currentSessionCount,
    subscriptions: server.engine.currentSubscriptionCount,
    made: server.engine.cumulatedSubscriptionCount,
  }),
  drop() {
    for (const session of Object.values(server.engine._sessions)) {
      server.engine.closeSession(session.authenticationToken, true, "Terminated");
    }
  },
  forget() { // end the subscriptions alone, as servers do after their lifetime
    for (const session of Object.values(server.engine._sessions)) {
      for (const id of Object.keys(session.publishEngine._subscriptions)) session.deleteSubscription(Number(id));
    }
  },
  writes: () => writes,
  seen() {
    writes = [];
  },
  state: ({ name }) => server.engine.setServerState(ServerState[name]),
  stop() {
    clearTimeout(timer); // the device is off, and its timer with it
    return server.shutdown(10);
  },
  start,
};

(async () => {
  await start();
  process.stdout.write(JSON.stringify({ ready: true, port: plant.port }) + "\n");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    let answer;
    try {
      answer = { id: asked.id, answer: (await VERBS[asked.verb](asked)) ?? null };
    } catch (error) {
      answer = { id: asked.id, fault: String(error.stack ?? error) };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
  process.exit(0);
})().catch((error) => {
  process.stderr.write(String(error.stack ?? error));
  process.exit(1);
});
