// Shows what the checks of proofs.js find. Whatever a receipt says is set as text, never as markup.
import {
  checkId, checkLog, checkManifest, checkManifestLog, checkPayouts, checkSignature, checkSums, fromBase64,
} from "./proofs.js";

const MARKS = { held: "✓", failed: "✗", absent: "–" };

function show(place, name, state, detail) {
  const row = place.querySelector(`[data-check="${name}"]`);
  row.classList.remove("held", "failed");
  row.classList.add(state);
  row.querySelector(".sign").textContent = MARKS[state];
  row.querySelector(".outcome").textContent = detail;
}

// Everything that can be checked, in order; a check that throws has failed.
function verify(place, found) {
  const { bytes, signature, operator, log, manifest, payouts, dataHash, root, id } = found;
  const checks = {
    id: id ? () => checkId(bytes, id) : () => [true, checkId(bytes, "")[1]],
    sums: () => checkSums(bytes),
    signature: () => checkSignature(bytes, signature, operator),
    log: () => checkLog(bytes, log),
    manifest: manifest && dataHash ? () => checkManifest(manifest, dataHash) : null,
    manifest_log: manifest ? () => checkManifestLog(manifest, log) : null,
    payouts: manifest ? () => checkPayouts(bytes, payouts, manifest, root) : null,
  };
  let failed = 0;
  let held = 0;
  for (const [name, check] of Object.entries(checks)) {
    if (!check) {
      show(place, name, "absent", "nothing to compare with yet");
      continue;
    }
    let outcome;
    try {
      outcome = check();
    } catch (error) {
      outcome = [false, error.message];
    }
    show(place, name, outcome[0] ? "held" : "failed", outcome[1]);
    if (outcome[0]) held += 1; else failed += 1;
  }
  const verdict = place.querySelector("[data-verdict]");
  verdict.className = `verdict ${failed ? "failed" : "held"}`;
  verdict.textContent = failed ? `${failed} of ${failed + held} checks fail` : `All ${held} checks hold`;
}

function ofPage(proof) {
  const epoch = proof.epoch;
  return {
    id: proof.id,
    bytes: fromBase64(proof.receipt),
    signature: proof.signature,
    operator: proof.operator,
    log: proof.log,
    manifest: epoch ? fromBase64(epoch.manifest) : null,
    payouts: epoch ? epoch.payouts : [],
    dataHash: epoch?.chain?.data_hash ?? null,
    root: epoch?.chain?.root ?? null,
  };
}

const page = document.querySelector("[data-proof]");
if (page) {
  let given = null;
  const load = async () => {
    if (!given) given = ofPage(await (await fetch(page.dataset.proof, { headers: { accept: "application/json" } })).json());
    return given;
  };
  const flipped = page.querySelector("[data-flipped]");
  const restore = page.querySelector("[data-restore]");
  const place = page.querySelector("[data-byte]");

  page.querySelector("[data-verify]").addEventListener("click", async () => {
    flipped.hidden = true;
    restore.hidden = true;
    verify(page, await load());
  });
  restore.addEventListener("click", () => page.querySelector("[data-verify]").click());
  page.querySelector("[data-flip]").addEventListener("click", async () => {
    const found = await load();
    const bytes = Uint8Array.from(found.bytes);
    const at = Math.max(0, Math.min(bytes.length - 1, Number(place.value) || 0));
    bytes[at] ^= 1;
    const text = (from, to) => new TextDecoder().decode(bytes.slice(Math.max(0, from), to));
    const mark = document.createElement("mark");
    mark.textContent = text(at, at + 1);
    flipped.replaceChildren(`… ${text(at - 40, at)}`, mark, `${text(at + 1, at + 41)} …`);
    flipped.hidden = false;
    restore.hidden = false;
    verify(page, { ...found, bytes });
  });
}

const file = document.querySelector("form[data-file]");
file?.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const bundle = JSON.parse(await file.elements.bundle.files[0].text());
    verify(file, {
      id: null,
      bytes: fromBase64(bundle.receipt),
      signature: bundle.signature,
      operator: file.elements.operator.value.trim(),
      log: bundle.proof,
      manifest: fromBase64(bundle.manifest),
      payouts: bundle.payout_proofs,
      dataHash: file.elements["data-hash"].value.trim() || null,
      root: null,
    });
  } catch (error) {
    const verdict = file.querySelector("[data-verdict]");
    verdict.className = "verdict failed";
    verdict.textContent = error.message;
  }
});
