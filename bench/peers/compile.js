// Compiles Peers.sol with the solc of npm; prints {name: {abi, bytecode}}. Usage: node compile.js FOLDER SOURCE
const fs = require("fs"), path = require("path");
const [folder, source] = process.argv.slice(2);
const solc = require(path.join(folder, "node_modules/solc"));
const input = {
  language: "Solidity",
  sources: { "Peers.sol": { content: fs.readFileSync(source, "utf8") } },
  settings: {
    optimizer: { enabled: true, runs: 1000000 }, viaIR: true, evmVersion: "cancun",
    outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
  },
};
const read = (name) => ({ contents: fs.readFileSync(path.join(folder, "node_modules", name), "utf8") });
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: read }));
const errors = (output.errors || []).filter((error) => error.severity === "error");
if (errors.length) { console.error(errors.map((error) => error.formattedMessage).join("\n")); process.exit(1); }
const built = {};
for (const [name, one] of Object.entries(output.contracts["Peers.sol"]))
  built[name] = { abi: one.abi, bytecode: "0x" + one.evm.bytecode.object };
console.log(JSON.stringify(built));
