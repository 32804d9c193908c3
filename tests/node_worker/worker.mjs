// A worker for `zmqrl/1` in Node.js, written from docs/protocol.md alone. § refers to sections of that page.
// It plays no game and has no network: its gradient is a constant. It does everything else that a worker does.
//
//     node worker.mjs DIR/cluster.json RANK
//
// Exit status: 0 if the run has ended, 1 if refused or out of contact, 2 for bad usage, 130 if interrupted. The last
// line on stdout is a JSON object with its totals. Node has one thread, so a real gradient belongs in a
// worker_threads.Worker (§1.3).
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { dirname, resolve } from "node:path";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer, Push, Subscriber } from "zeromq";

const PROTOCOL = "zmqrl/1";
const HELLO_S = 1.0, PING_S = 1.0, SNAPSHOT_S = 2.0, LEASE_S = 60.0; // §1.10
const LEAVE_S = 2.0, REPORT_S = 0.2, TICK_S = 0.02;
const SOCKET = { // §1.3; milliseconds
  linger: 0, handshakeInterval: 5000, reconnectInterval: 100, reconnectMaxInterval: 3000,
};
const SENDING = { ...SOCKET, immediate: true, sendTimeout: 0 }; // a timeout of 0 is ZMQ_DONTWAIT here

// The messages that a worker receives, with their fields in the order of §1.8. To JavaScript, 1.0 and 1 are the same.
const text = (x) => typeof x === "string", bool = (x) => typeof x === "boolean";
const int = (x) => Number.isSafeInteger(x) && x >= 0, ints = (x) => Array.isArray(x) && x.every(int);
const ONE = { run: text, shard: int }, STAND = { ...ONE, incarnation: int, generation: int, version: int };
const WEIGHTS = { ...STAND, view: int, quorum: int, members: ints, ranks: ints, codec: text, crc32: int,
  elapsed: int }; // the last field is optional
const FIELDS = {
  WEIGHTS, SNAPSHOT: WEIGHTS,
  WELCOME: { ...STAND, view: int, quorum: int, members: ints, codec: text, state: text, published: bool },
  HEARTBEAT: { ...STAND, view: int, held: ints, published: bool },
  NEED: { ...STAND, view: int, held: ints },
  BYE: STAND,
  MISSING: { ...ONE, version: int },
  PONG: { ...ONE, sent_us: int, received_us: int, answered_us: int },
  REFUSE: { run: text, code: text, reason: text },
  LEFT: ONE,
};

/** The message in the frames after the topic, as {kind, field: value, ..., payload}, or null if it is malformed. */
function parse(frames) {
  let values;
  try { values = decode(frames[0]); } catch { return null; }
  if (!Array.isArray(values) || !Object.hasOwn(FIELDS, values[1])) return null;
  if (values[0] !== PROTOCOL && values[1] !== "REFUSE") return null;
  const [, kind, ...fields] = values, types = Object.entries(FIELDS[kind]);
  if (frames.length !== (FIELDS[kind] === WEIGHTS ? 2 : 1)) return null;
  if (FIELDS[kind] === WEIGHTS && fields.length === types.length - 1) fields.push(0);
  if (fields.length !== types.length || !types.every(([, accepts], i) => accepts(fields[i]))) return null;
  return { kind, ...Object.fromEntries(types.map(([name], i) => [name, fields[i]])), payload: frames[1] };
}

// §1.5. Typed arrays have the byte order of the machine: little-endian on every platform of Node except s390x.
const BYTES = { f32: 4, bf16: 2 };
function toFloats({ codec, payload }) {
  const bytes = payload.buffer.slice(payload.byteOffset, payload.byteOffset + payload.length);
  return new Float32Array(codec === "f32" ? bytes : Uint32Array.from(new Uint16Array(bytes), (x) => x << 16).buffer);
}
function toPayload(codec, floats) {
  const bytes = floats.slice().buffer;
  if (codec === "f32") return Buffer.from(bytes);
  const round = (x, i) => (Number.isNaN(floats[i]) ? 0x7fc0 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16);
  return Buffer.from(Uint16Array.from(new Uint32Array(bytes), round).buffer);
}

const seconds = () => performance.now() / 1000;
const fail = (status, sentence) => { console.error(`node worker: ${sentence}`); process.exit(status); };

/** This worker's view of one shard (§1.6), and the three sockets to it (§1.3). */
class Shard {
  incarnation = 0; generation = 0; version = 0; view = 0; welcomed = false;
  slices = new Map(); // version -> {codec, payload, elapsed}: the newest and the previous version
  contribution = null; // null: no open contribution; {generation, version, payload, attempt, state: "pending" or "sent"}
  needs = []; // `held` of each NEED for `version`
  ended = false; // its latest message is BYE
  left = false;
  helloAt = 0; pingAt = 0; askAt = 0; heardAt = seconds();

  constructor(index, endpoints, worker) {
    Object.assign(this, { index, worker });
    const { keys } = worker;
    const curve = keys // §1.15
      ? { curvePublicKey: keys.public, curveSecretKey: keys.secret, curveServerKey: keys.shards[index] } : {};
    this.grad = new Push({ ...SENDING, ...curve, sendHighWaterMark: 2 });
    this.weights = new Subscriber({ ...SOCKET, ...curve, receiveHighWaterMark: 3 });
    this.control = new Dealer({ ...SENDING, ...curve, sendHighWaterMark: 8, receiveHighWaterMark: 8 });
    this.weights.subscribe("W", "H", "N", "X");
    this.weights.subscribe(`P/${worker.rank}/${worker.incarnation}`);
    for (const name of ["grad", "weights", "control"]) this[name].connect(endpoints[name]);
    this.read(this.weights, 1);
    this.read(this.control, 0);
  }

  async read(socket, topics) {
    for await (const frames of socket) {
      const message = parse(frames.slice(topics));
      if (message?.kind === "REFUSE") fail(1, `shard ${this.index} refuses (${message.code}): ${message.reason}`);
      if (message?.run !== this.worker.run || message.shard !== this.index) continue;
      this.heardAt = seconds();
      if (message.kind === "LEFT") this.left = true;
      if ("generation" in message && this.follow(message)) this.act(message);
      this.worker.advance();
    }
  }

  /** Applies the four rules at the top of §1.6. Returns false if the message is out of date. */
  follow({ incarnation, generation, version, view = 0 }) {
    if (incarnation > this.incarnation) { // helloAt 0: send HELLO in the next tick, unless this is a WELCOME
      Object.assign(this, { incarnation, view: 0, welcomed: false, needs: [], ended: false, helloAt: 0, askAt: 0 });
    }
    if (incarnation < this.incarnation || generation < this.generation) return false;
    if (generation > this.generation) {
      Object.assign(this, { generation, version: 0, slices: new Map(), contribution: null, needs: [], ended: false });
    }
    if (version > this.version) {
      Object.assign(this, { version, needs: [] });
      for (const old of this.slices.keys()) if (old < version - 1) this.slices.delete(old);
      if (this.contribution?.attempt === 0) this.worker.totals.skipped += 1; // never sent, and now late
      this.contribution = null;
    }
    this.view = Math.max(this.view, view);
    return true;
  }

  act({ kind, version, held, published, codec, payload, elapsed }) {
    if (kind === "BYE") this.ended = true;
    if (["HEARTBEAT", "NEED", "WEIGHTS"].includes(kind)) this.ended = false;
    if (kind === "WELCOME") this.welcomed = true;
    if (kind === "SNAPSHOT") this.askAt = 0;
    const [start, stop] = this.worker.layout.slices[this.index];
    if (payload?.length === (stop - start) * BYTES[codec] && version >= this.version - 1) {
      this.slices.set(version, { codec, payload, elapsed });
    }
    if (published && version === this.version && !this.slices.has(version)) this.ask(version); // Gap
    if (kind !== "NEED" || version !== this.version) return;
    this.needs.push(held);
    if (this.contribution?.state === "sent" && !held.includes(this.worker.rank)) {
      this.contribution.state = "pending";
      this.worker.totals.resent += 1;
      this.push();
    }
  }

  tick(now) {
    const { rank, incarnation, layout, totals } = this.worker;
    if (now - this.heardAt > LEASE_S) fail(1, `shard ${this.index} was silent for ${LEASE_S} s`);
    if (!this.welcomed && now >= this.helloAt) {
      this.helloAt = now + HELLO_S;
      this.say("HELLO", layout.hash, "worker", rank, incarnation, hostname().slice(0, 64), process.pid, "");
    }
    if (this.welcomed && now >= this.pingAt) {
      this.pingAt = now + PING_S;
      this.say("PING", rank, incarnation, this.generation, this.version, totals.steps, Math.floor(now * 1e6));
    }
    this.push();
  }

  ask(version) {
    if (seconds() < this.askAt) return;
    this.askAt = seconds() + SNAPSHOT_S;
    this.say("SNAPSHOT_REQUEST", version);
  }

  say(kind, ...fields) { // a message that cannot be sent now is dropped; its timer sends it again
    this.control.send(encode([PROTOCOL, kind, this.worker.run, ...fields])).catch(() => {});
  }

  async push() {
    const { run, layout, rank, incarnation, codec } = this.worker, mine = this.contribution;
    if (!this.welcomed || mine?.state !== "pending") return;
    const header = [PROTOCOL, "GRADIENT", run, layout.hash, mine.generation, this.view, this.index, mine.version, rank,
      incarnation, Math.min(mine.attempt, 65535), codec, mine.elapsed];
    mine.state = "sent";
    try {
      await this.grad.send([encode(header), mine.payload]);
      mine.attempt += 1;
    } catch {
      mine.state = "pending"; // EAGAIN: the next tick tries again
    }
  }
}

class Worker {
  incarnation = Date.now();
  newest = { generation: 0, version: -1 }; // the last version that it has contributed to
  totals = { steps: 0, repairs: 0, resent: 0, skipped: 0 };
  leaving = false;
  reportAt = 0;

  constructor({ run, layout, codec, shards }, rank, keys) {
    Object.assign(this, { run, layout, codec, rank, keys });
    this.shards = shards.map((endpoints, index) => new Shard(index, endpoints, this));
    this.timer = setInterval(() => {
      for (const shard of this.shards) shard.tick(seconds());
      this.advance();
    }, TICK_S * 1000);
  }

  /** The mean gradient of the loss at `weights`, both float32 (count,): here a constant. */
  gradient(weights) {
    return new Float32Array(weights.length).fill(1e-6);
  }

  /** Does the work that is due: end, step or repair (§1.6). */
  advance() {
    const { shards } = this, { generation } = shards[0];
    if (this.leaving || shards.some((shard) => shard.generation !== generation)) return;
    const version = Math.min(...shards.map((shard) => shard.version));
    const behind = shards.filter((shard) => shard.version === version);
    const level = behind.length === shards.length, ended = shards.filter((shard) => shard.ended);
    if (level && ended.length === shards.length) { this.leave(0); return; }
    if (!shards.every((shard) => shard.welcomed)) return;
    if (this.newest.generation === generation && this.newest.version >= version) return;
    if (level && ended.length === 0) this.step(version);
    if (!level && this.isNeeded(version, behind)) {
      for (const shard of shards) if (!shard.slices.has(version)) shard.ask(version);
      if (this.step(version)) this.totals.repairs += 1;
    }
  }

  isNeeded(version, behind) {
    return this.shards.every((shard) => shard.version <= version + 1)
      && behind.every((shard) => shard.needs.length >= 2)
      && behind.some((shard) => !shard.needs.at(-1).includes(this.rank));
  }

  /** Contributes to `version` at the shards where it is open. Returns false if a slice of it has not arrived yet. */
  step(version) {
    const { layout, codec, shards, totals } = this, { generation } = shards[0];
    if (!shards.every((shard) => shard.slices.has(version))) return false;
    const weights = new Float32Array(layout.count);
    for (const shard of shards) weights.set(toFloats(shard.slices.get(version)), layout.slices[shard.index][0]);
    const elapsed = Math.max(...shards.map((shard) => shard.slices.get(version).elapsed)); // §1.6, Progress
    const gradient = this.gradient(weights);
    this.newest = { generation, version };
    totals.steps += 1;
    for (const shard of shards) {
      if (shard.version > version) { totals.skipped += 1; continue; } // Late
      const payload = toPayload(codec, gradient.subarray(...layout.slices[shard.index]));
      shard.contribution = { generation, version, elapsed, payload, attempt: 0, state: "pending" };
      shard.push();
    }
    if (seconds() >= this.reportAt) this.report();
    return true;
  }

  /** §1.7. Each step counts as one action, so that this worker adds to the run's total. */
  report() {
    this.reportAt = seconds() + REPORT_S;
    const { steps, skipped } = this.totals;
    const figures = { version: this.newest.version, agent_steps: steps, skipped, policy_lag: 0 };
    this.shards[this.rank % this.shards.length].say("REPORT", this.rank, this.incarnation, encode(figures));
  }

  async leave(status) {
    this.leaving = true;
    clearInterval(this.timer);
    if (this.totals.steps > 0) this.report();
    for (const shard of this.shards) shard.say("LEAVE", this.rank, this.incarnation);
    const deadline = seconds() + LEAVE_S;
    while (seconds() < deadline && !this.shards.every((shard) => shard.left)) {
      await new Promise((resolve) => setTimeout(resolve, TICK_S * 1000));
    }
    for (const { grad, weights, control } of this.shards) for (const socket of [grad, weights, control]) socket.close();
    console.log(JSON.stringify({ rank: this.rank, version: this.newest.version, ...this.totals }));
    process.exitCode = status;
  }
}

const [path, rank] = process.argv.slice(2);
if (!/^\d+$/.test(rank ?? "")) fail(2, "usage: node worker.mjs DIR/cluster.json RANK");
let cluster, keys = null;
try { cluster = JSON.parse(readFileSync(path, "utf8")); } catch (error) { fail(2, `no run there: ${error.message}`); }
if (cluster.protocol !== PROTOCOL) fail(2, `${path} is of protocol ${cluster.protocol}, not ${PROTOCOL}`);
if (cluster.mode !== "sync") fail(2, `${path} is a run of mode ${cluster.mode}, which this worker does not have`);
if (!Object.hasOwn(BYTES, cluster.codec)) fail(2, `${path} names the codec ${cluster.codec}, which this worker does not have`);
if (!cluster.open_ranks.includes(Number(rank))) fail(2, `rank ${rank} is not one of ${cluster.open_ranks}`);
if (cluster.keys !== null) {
  const file = resolve(dirname(path), cluster.keys[rank]);
  try { keys = JSON.parse(readFileSync(file, "utf8")); } catch { fail(2, `no keys of rank ${rank} in ${file}`); }
}
const worker = new Worker(cluster, Number(rank), keys);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => worker.leaving || worker.leave(130));
