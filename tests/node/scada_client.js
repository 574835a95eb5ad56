// A SCADA system's OPC UA client on node-opcua, told over standard input what to do: see tests/node_peers.py.
//
// Environment, JSON in SCADA: certificate, key (PEM files), pki (a folder of its own).
//
// Verbs: connect {url, policy, mode, user, password}; endpoints {url}; browse {id}; read {id, attribute};
// write {id, type, value}; call {object, method, inputs}; subscribe {ids, publishing, sampling, queue, deadband};
// events {fields}; refresh; history {id, start, end, most}; session; disconnect.
//
// Of its own accord: {changed, value, status, source}, {event}, {link}.
"use strict";
const readline = require("node:readline");
const {
  AttributeIds, ClientMonitoredItem, DataChangeFilter, DataChangeTrigger, DataType, DeadbandType,
  MessageSecurityMode, OPCUACertificateManager, OPCUAClient, SecurityPolicy, SimpleAttributeOperand,
  TimestampsToReturn, UserTokenType,
  constructEventFilter, resolveNodeId,
} = require("node-opcua");

const scada = JSON.parse(process.env.SCADA);
let client, session, subscription;

const say = (line) => process.stdout.write(JSON.stringify(line, plain) + "\n");

function plain(_key, value) {
  if (typeof value === "number" && !Number.isFinite(value)) return String(value);
  if (typeof value === "bigint") return String(value);
  if (value && value.type === "Buffer") return Buffer.from(value.data).toString("hex");
  return value;
}

const told = (dataValue) => ({
  value: dataValue.value?.value, type: DataType[dataValue.value?.dataType ?? 0], status: dataValue.statusCode.name,
  source: dataValue.sourceTimestamp?.getTime() / 1000, server: dataValue.serverTimestamp?.getTime() / 1000,
});

async function make(url, { policy, mode }) {
  const manager = new OPCUACertificateManager({
    rootFolder: scada.pki, automaticallyAcceptUnknownCertificate: true, disableFileWatchers: true,
  });
  await manager.initialize();
  return OPCUAClient.create({
    applicationName: "scada", applicationUri: "urn:test:scada", clientCertificateManager: manager,
    certificateFile: scada.certificate, privateKeyFile: scada.key, endpointMustExist: false,
    securityPolicy: SecurityPolicy[policy ?? "None"], securityMode: MessageSecurityMode[mode ?? "None"],
    connectionStrategy: { maxRetry: -1, initialDelay: 100, maxDelay: 500 }, keepSessionAlive: true,
    requestedSessionTimeout: 20000,
  });
}

const VERBS = {
  async endpoints({ url }) {
    const probe = await make(url, {});
    await probe.connect(url);
    const found = await probe.getEndpoints();
    await probe.disconnect();
    return found.map((one) => [one.securityPolicyUri.split("#")[1], MessageSecurityMode[one.securityMode]]);
  },
  async connect({ url, policy, mode, user, password }) {
    client = await make(url, { policy, mode });
    for (const name of ["connection_lost", "connection_reestablished", "after_reconnection"]) {
      client.on(name, () => say({ link: name }));
    }
    await client.connect(url);
    session = await client.createSession(
      user ? { type: UserTokenType.UserName, userName: user, password } : { type: UserTokenType.Anonymous });
    session.on("session_restored", () => say({ link: "session_restored" }));
    return session.sessionId.toString();
  },
  async browse({ id }) {
    const found = await session.browse({ nodeId: id, resultMask: 63, includeSubtypes: true,
      referenceTypeId: "HierarchicalReferences", browseDirection: 0 });
    return found.references.map((one) => ({
      id: one.nodeId.toString(), name: one.browseName.name, type: one.typeDefinition?.toString(),
    }));
  },
  async read({ id, attribute }) {
    return told(await session.read({ nodeId: id, attributeId: AttributeIds[attribute ?? "Value"] }));
  },
  async write({ id, type, value }) {
    const status = await session.write({
      nodeId: id, attributeId: AttributeIds.Value, value: { value: { dataType: DataType[type], value } } });
    return status.name;
  },
  async call({ object, method, inputs }) {
    const done = await session.call({ objectId: object, methodId: method,
      inputArguments: (inputs ?? []).map(([type, value]) => ({ dataType: DataType[type], value })) });
    return { status: done.statusCode.name, outputs: (done.outputArguments ?? []).map((one) => one.value) };
  },
  async subscribe({ ids, publishing, sampling, queue, deadband }) {
    await open(publishing);
    const filter = deadband === undefined ? undefined : new DataChangeFilter({
      trigger: DataChangeTrigger.StatusValue, deadbandType: DeadbandType.Absolute, deadbandValue: deadband });
    for (const id of ids) {
      const item = ClientMonitoredItem.create(subscription, { nodeId: id, attributeId: AttributeIds.Value },
        { samplingInterval: sampling ?? 100, queueSize: queue ?? 1, discardOldest: true, filter },
        TimestampsToReturn.Both);
      item.on("changed", (value) => say({ changed: id, ...told(value) }));
      item.on("err", (text) => say({ refused: id, text }));
    }
  },
  async events({ fields }) {
    await open(100);
    const filter = constructEventFilter(fields, resolveNodeId("ConditionType"));
    filter.selectClauses.push(new SimpleAttributeOperand({
      typeDefinitionId: resolveNodeId("ConditionType"), browsePath: [], attributeId: AttributeIds.NodeId }));
    const item = ClientMonitoredItem.create(subscription,
      { nodeId: resolveNodeId("Server"), attributeId: AttributeIds.EventNotifier },
      { samplingInterval: 0, queueSize: 100, discardOldest: true, filter });
    item.on("changed", (values) => {
      say({ event: Object.fromEntries(values.map((one, place) => [fields[place] ?? "ConditionId", one.value])) });
    });
    await new Promise((done) => item.on("initialized", done));
  },
  async refresh() {
    const done = await session.call({ objectId: "i=2782", methodId: "i=3875",
      inputArguments: [{ dataType: DataType.UInt32, value: subscription.subscriptionId }] });
    return done.statusCode.name;
  },
  async history({ id, start, end, most }) {
    const found = await session.readHistoryValue(id, start && new Date(start * 1000), end && new Date(end * 1000),
      { numValuesPerNode: most ?? 0 });
    return { status: found.statusCode.name, more: Boolean(found.continuationPoint),
      values: (found.historyData?.dataValues ?? []).map(told) };
  },
  async disconnect() {
    await session.close(true);
    await client.disconnect();
  },
};

async function open(publishing) {
  if (subscription) return;
  subscription = await session.createSubscription2({ requestedPublishingInterval: publishing ?? 100,
    requestedLifetimeCount: 1000, requestedMaxKeepAliveCount: 10, maxNotificationsPerPublish: 100,
    publishingEnabled: true, priority: 1 });
}

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const { id: number, verb, node, ...given } = JSON.parse(line);
  try {
    say({ id: number, answer: (await VERBS[verb]({ ...given, id: node })) ?? null });
  } catch (error) {
    say({ id: number, fault: String(error.message ?? error).split("\n").slice(0, 3).join(" ") });
  }
}).on("close", () => process.exit(0));
