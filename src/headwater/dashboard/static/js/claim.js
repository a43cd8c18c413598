// Asks a wallet that the browser has for a signature over the terms on the page; the page works without one.
const button = document.getElementById("sign");
const wallet = globalThis.ethereum;
if (button && wallet) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const terms = document.getElementById("terms").textContent;
    try {
      await wallet.request({ method: "eth_requestAccounts" });
      const account = JSON.parse(terms).message.account;
      document.getElementById("signature").value = await wallet.request({ method: "eth_signTypedData_v4", params: [account, terms] });
    } catch (error) {
      button.setAttribute("aria-label", error.message ?? String(error));  // refused in the wallet: nothing was signed
    }
  });
}
