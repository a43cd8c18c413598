// Signs the sign-in text with a wallet of this browser, where there is one. Without one the text is signed elsewhere
// and the signature is pasted.
const form = document.querySelector("form[data-wallet]");
const wallet = globalThis.ethereum;

if (form && wallet) {
  const place = form.querySelector(".has-wallet");
  place.hidden = false;
  place.querySelector("button").addEventListener("click", async () => {
    const [address] = await wallet.request({ method: "eth_requestAccounts" });
    const text = new TextEncoder().encode(form.elements.message.value);
    const hex = "0x" + Array.from(text, (byte) => byte.toString(16).padStart(2, "0")).join("");
    form.elements.signature.value = await wallet.request({ method: "personal_sign", params: [hex, address] });
    form.requestSubmit();
  });
}
