// Checks a receipt with nothing but its bytes: SHA-256 of them, the operator's EIP-712 signature, inclusion in the log
// (RFC 6962) and payees' leaves in the payout tree (keccak, with sums). Knows nothing of pages or servers.
import { bytesToHex, concatBytes, hexToBytes, keccak_256, secp256k1, sha256, utf8ToBytes } from "../vendor/crypto.js";

const keccakText = (text) => keccak_256(utf8ToBytes(text));
const RECEIPT_TYPE = keccakText("Receipt(bytes32 id,string callId,string price,bytes32 policyDigest)");
const DOMAIN = keccak_256(concatBytes(
  keccakText("EIP712Domain(string name,string version)"), keccakText("headwater"), keccakText("1"),
));
const PAYOUT_TAG = keccakText("headwater.payout.v2");
const PPB = 1000000000;
const AMOUNT_MAX = 2n ** 48n - 1n;

export const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const plain = (hex) => hexToBytes(hex.replace(/^0x/, "").toLowerCase());
const same = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);

function word(value, size) {
  const bytes = new Uint8Array(size);
  let rest = BigInt(value);
  for (let i = size - 1; i >= 0; i -= 1, rest >>= 8n) bytes[i] = Number(rest & 255n);
  if (rest !== 0n) throw new Error(`${value} takes more than ${size} bytes`);
  return bytes;
}

// RFC 8785 of what receipts hold: text, whole numbers, lists and records.
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value !== null && typeof value === "object") {
    const rows = Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`);
    return `{${rows.join(",")}}`;
  }
  return JSON.stringify(value);
}

function parsed(bytes) {
  const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  const value = JSON.parse(text);
  if (canonical(value) !== text) throw new Error("the bytes are not canonical JSON");
  return value;
}

export function checkId(bytes, id) {
  const found = bytesToHex(sha256(bytes));
  return [found === id, found];
}

export function checkSums(bytes) {
  const receipt = parsed(bytes);
  const paid = receipt.payouts.reduce((sum, payout) => sum + BigInt(payout.amount), 0n);
  const account = receipt.attribution;
  const weights = account.shares.reduce((sum, share) => sum + share.weight_ppb, account.residual_ppb);
  const holds = paid === BigInt(receipt.price) && weights === PPB;
  return [holds, `${paid} of ${receipt.price} nano ${receipt.currency}, ${weights} ppb`];
}

export function signer(bytes, signature) {
  const receipt = parsed(bytes);
  const struct = keccak_256(concatBytes(
    RECEIPT_TYPE, sha256(bytes), keccakText(receipt.call_id), keccakText(receipt.price),
    plain(receipt.policy_digest.replace("sha256:", "")),
  ));
  const digest = keccak_256(concatBytes(Uint8Array.of(0x19, 0x01), DOMAIN, struct));
  const raw = plain(signature);
  if (raw.length !== 65 || (raw[64] !== 27 && raw[64] !== 28)) throw new Error("not a signature of 65 bytes");
  const number = (from, to) => BigInt(`0x${bytesToHex(raw.slice(from, to))}`);
  const made = new secp256k1.Signature(number(0, 32), number(32, 64), raw[64] - 27);
  if (made.hasHighS()) throw new Error("its s is in the upper half of the curve's order");
  const key = made.recoverPublicKey(digest).toBytes(false);
  return `0x${bytesToHex(keccak_256(key.slice(1)).slice(12))}`;
}

export function checkSignature(bytes, signature, operator) {
  const found = signer(bytes, signature);
  return [found === operator.toLowerCase() && parsed(bytes).operator === found, found];
}

export function checkLog(bytes, proof) {
  const pair = (left, right) => sha256(concatBytes(Uint8Array.of(1), left, right));
  let node = sha256(concatBytes(Uint8Array.of(0), bytes));
  let index = proof.index;
  let last = proof.size - 1;
  if (!(index >= 0 && index <= last)) return [false, `entry ${index} of ${proof.size}`];
  for (const hex of proof.path) {
    if (last === 0) return [false, "the path is too long"];
    const sibling = plain(hex);
    if (index % 2 === 1 || index === last) {
      node = pair(sibling, node);
      while (index % 2 === 0 && index > 0) {
        index = Math.floor(index / 2);
        last = Math.floor(last / 2);
      }
    } else {
      node = pair(node, sibling);
    }
    index = Math.floor(index / 2);
    last = Math.floor(last / 2);
  }
  const root = bytesToHex(node);
  return [last === 0 && root === proof.root, `entry ${proof.index} of ${proof.size}, root ${root}`];
}

export function checkManifest(manifest, dataHash) {
  const found = bytesToHex(keccak_256(manifest));
  return [found === dataHash.replace(/^0x/, "").toLowerCase(), found];
}

export function checkManifestLog(manifest, proof) {
  const epoch = parsed(manifest);
  const holds = epoch.log_size === proof.size && epoch.log_root === proof.root;
  return [holds, `epoch ${epoch.epoch}, ${epoch.log_size} receipts, root ${epoch.log_root}`];
}

// The root that a payee's leaf leads to.
export function payoutRoot(payout, epoch) {
  const sumOf = (node) => BigInt(`0x${bytesToHex(node.slice(24))}`);
  const amount = BigInt(payout.amount);
  if (amount < 0n || amount > AMOUNT_MAX) throw new Error("the amount is out of range");
  const message = concatBytes(word(payout.index, 4), plain(payout.address), word(amount, 8));
  let node = concatBytes(keccak_256(message).slice(0, 24), message.slice(24));
  let position = payout.index;
  for (const hex of payout.path) {
    const sibling = plain(hex);
    const [left, right] = position % 2 === 1 ? [sibling, node] : [node, sibling];
    node = concatBytes(keccak_256(concatBytes(left, right)).slice(0, 24), word(sumOf(left) + sumOf(right), 8));
    position = Math.floor(position / 2);
  }
  if (position !== 0) throw new Error("the index lies outside the tree");
  const domain = keccak_256(concatBytes(
    PAYOUT_TAG, word(epoch.chain_id, 32), word(epoch.contract, 32), word(epoch.token, 32), word(epoch.epoch, 32),
  ));
  return keccak_256(concatBytes(domain, word(payout.path.length, 32), node));
}

export function checkPayouts(bytes, payouts, manifest, rootOnChain) {
  const accounts = new Set(parsed(bytes).payouts.map((payout) => payout.account.replace(/^escrow:/, "contributor:")));
  const epoch = parsed(manifest);
  const wanted = plain(rootOnChain ?? epoch.tree_root);
  for (const payout of payouts) {
    if (!accounts.has(payout.account)) return [false, `${payout.account} is not paid by this receipt`];
    if (!same(payoutRoot(payout, epoch), wanted)) return [false, `${payout.account} is not in the tree`];
  }
  return [same(wanted, plain(epoch.tree_root)), `${payouts.length} payees, root ${bytesToHex(wanted)}`];
}
