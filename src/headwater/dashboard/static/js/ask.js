// Asking: sends the conversation to the gateway, writes the answer as it streams, then lets the page with who supplied
// it take its place. Whatever the model says is set as text, never as markup.
const form = document.getElementById("ask");
const log = document.getElementById("conversation");
const csrf = document.querySelector('meta[name="csrf"]').content;
const messages = [];

function turn(kind, title, text) {
  const place = document.createElement("div");
  place.className = `turn ${kind}`;
  const head = document.createElement("h2");
  head.textContent = title;
  const said = document.createElement("p");
  said.className = "said";
  said.textContent = text;
  place.append(head, said);
  log.append(place);
  return { place, said };
}

// The events of a stream, each the JSON behind `data:`.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function ask() {
  const problem = document.getElementById("problem");
  const stop = form.querySelector(".stop");
  const question = form.elements.question.value.trim();
  const leaving = new AbortController();
  problem.hidden = true;
  document.getElementById("nothing")?.remove();
  form.querySelector('[type="submit"]').disabled = true;
  stop.hidden = false;
  stop.onclick = () => leaving.abort();
  turn("you", log.dataset.you, question);
  const { place, said } = turn("answer streaming", log.dataset.answer, "");
  place.setAttribute("aria-busy", "true");
  let call = null;
  try {
    const response = await fetch(form.action, {
      method: "POST",
      headers: { "content-type": "application/json", "x-csrf-token": csrf, "idempotency-key": crypto.randomUUID() },
      body: JSON.stringify({
        model: form.elements.model.value,
        messages: [...messages, { role: "user", content: question }],
        max_tokens: Number(form.elements.tokens.value),
        stream: true,
      }),
      signal: leaving.signal,
    });
    if (!response.ok) {
      const told = await response.json();
      throw new Error(told.error?.message ?? told.detail ?? response.statusText);
    }
    call = response.headers.get("headwater-receipt");
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const text = event.choices?.[0]?.delta?.content;
      if (text) said.textContent += text;
      if (event.headwater) call = event.headwater.receipt;
    }
    messages.push({ role: "user", content: question }, { role: "assistant", content: said.textContent });
    form.elements.question.value = "";
  } catch (error) {
    if (error.name !== "AbortError") {
      problem.textContent = error.message;
      problem.hidden = false;
    }
    if (!call) place.remove();
  } finally {
    form.querySelector('[type="submit"]').disabled = false;
    stop.hidden = true;
    place.removeAttribute("aria-busy");
  }
  if (call) htmx.ajax("GET", `/ask/calls/${call}/answer`, { target: place, swap: "outerHTML" });
}

form?.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
form?.elements.question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

// Tokens and suppliers point at each other.
const shown = (micro) => `${(micro / 1e6).toFixed(micro >= 1e7 ? 0 : 1)} bits`;

function nameOf(answer, number) {
  if (number === "base") return answer.querySelector(".figure dt")?.textContent ?? number;
  const card = answer.querySelector(`.supplier[data-number="${CSS.escape(number)}"]`);
  return card ? `${number} · ${card.querySelector("h3 a").textContent}` : number;
}

function pick(answer, number, held) {
  answer.classList.toggle("picking", number !== null);
  for (const token of answer.querySelectorAll(".token")) {
    const gives = JSON.parse(token.dataset.bits)[number] ?? 0;
    token.classList.toggle("picked", number !== null && (token.dataset.main === number || gives >= 1e6));
    token.setAttribute("aria-pressed", String(token === held));
  }
  for (const card of answer.querySelectorAll(".supplier")) {
    const on = card.dataset.number === number;
    card.classList.toggle("picked", on);
    card.querySelector(".show").setAttribute("aria-pressed", String(on));
  }
}

function choose(token) {
  const answer = token.closest(".answer");
  if (token.getAttribute("aria-pressed") === "true") {
    pick(answer, null, null);
    return;
  }
  pick(answer, token.dataset.main, token);
  answer.classList.remove("picking");
  for (const show of answer.querySelectorAll(".supplier .show")) show.setAttribute("aria-pressed", "false");
  const detail = answer.querySelector(".token-detail");
  const bits = Object.entries(JSON.parse(token.dataset.bits)).filter(([, micro]) => Math.abs(micro) >= 5e4);
  bits.sort((a, b) => b[1] - a[1]);
  const word = document.createElement("strong");
  word.textContent = `“${token.textContent.trim() || "␣"}” `;
  detail.replaceChildren(word, bits.map(([number, micro]) => `${nameOf(answer, number)}: ${shown(micro)}`).join("; "));
  const card = answer.querySelector(`.supplier[data-number="${CSS.escape(token.dataset.main)}"]`);
  card?.scrollIntoView({ block: "nearest", behavior: "auto" });
}

document.addEventListener("click", (event) => {
  const token = event.target.closest?.(".token");
  if (token) {
    walkTo(token);
    choose(token);
    return;
  }
  const show = event.target.closest?.(".supplier .show");
  if (show) {
    const answer = show.closest(".answer");
    const on = show.getAttribute("aria-pressed") === "true";
    pick(answer, on ? null : show.closest(".supplier").dataset.number, null);
  }
});

function walkTo(token) {
  for (const one of token.parentElement.querySelectorAll('.token[tabindex="0"]')) one.tabIndex = -1;
  token.tabIndex = 0;
}

document.addEventListener("keydown", (event) => {
  const token = event.target.closest?.(".token");
  if (!token) return;
  const all = [...token.parentElement.querySelectorAll(".token")];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) {
    const next = all[all.indexOf(token) + step];
    if (next) {
      walkTo(next);
      next.focus();
    }
    event.preventDefault();
  } else if (event.key === "Enter" || event.key === " ") {
    choose(token);
    event.preventDefault();
  }
});
