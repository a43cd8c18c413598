// SPDX-License-Identifier: Apache-2.0
// What `bench/peers.py` measures us beside. Each is our own short contract of a known shape, over the libraries
// that the shape is known from; they are compiled when the bench runs and are no part of the project.
pragma solidity ^0.8.20;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

/// A dollar-like token over OpenZeppelin's ERC20: the one that all contestants pay in.
contract Dollar is ERC20 {
    constructor() ERC20("Dollar", "USD") {}

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function mintMany(address[] calldata to) external {
        for (uint256 i = 0; i < to.length; ++i) _mint(to[i], 1);
    }
}

/// Trusted: whoever calls decides who gets what. Nothing is proved, nothing is remembered.
contract Disperse {
    using SafeERC20 for IERC20;

    function disperse(IERC20 token, address[] calldata to, uint256[] calldata amounts) external {
        uint256 total;
        for (uint256 i = 0; i < amounts.length; ++i) total += amounts[i];
        token.safeTransferFrom(msg.sender, address(this), total);
        for (uint256 i = 0; i < to.length; ++i) token.safeTransfer(to[i], amounts[i]);
    }
}

/// Cumulative amounts, one proof each, sorted pairs; the shape of 1inch's cumulative drop.
contract CumulativeDrop {
    using SafeERC20 for IERC20;

    IERC20 private immutable TOKEN;
    bytes32 public root;
    mapping(address => uint256) public paid;

    event Claimed(address indexed account, uint256 amount);

    constructor(IERC20 token) {
        TOKEN = token;
    }

    function setRoot(bytes32 newRoot) external {
        root = newRoot;
    }

    function claim(address account, uint256 cumulative, bytes32 expected, bytes32[] calldata proof) external {
        require(root == expected, "root");
        require(MerkleProof.verifyCalldata(proof, expected, keccak256(abi.encodePacked(account, cumulative))), "proof");
        uint256 before = paid[account];
        require(before < cumulative, "nothing due");
        paid[account] = cumulative;
        TOKEN.safeTransfer(account, cumulative - before);
        emit Claimed(account, cumulative - before);
    }
}

/// Cumulative amounts pushed in batches, proved by OpenZeppelin's multiproof over double-hashed leaves.
contract MultiproofPush {
    using SafeERC20 for IERC20;

    IERC20 private immutable TOKEN;
    bytes32 public root;
    mapping(address => uint256) public paid;

    constructor(IERC20 token) {
        TOKEN = token;
    }

    function setRoot(bytes32 newRoot) external {
        root = newRoot;
    }

    function push(
        address[] calldata to,
        uint256[] calldata cumulative,
        bytes32[] calldata proof,
        bool[] calldata flags
    ) external {
        bytes32[] memory leaves = new bytes32[](to.length);
        for (uint256 i = 0; i < to.length; ++i) {
            leaves[i] = keccak256(bytes.concat(keccak256(abi.encode(to[i], cumulative[i]))));
        }
        require(MerkleProof.multiProofVerifyCalldata(proof, flags, root, leaves), "proof");
        for (uint256 i = 0; i < to.length; ++i) {
            uint256 due = cumulative[i] - paid[to[i]];
            if (due == 0) continue;
            paid[to[i]] = cumulative[i];
            TOKEN.safeTransfer(to[i], due);
        }
    }
}
