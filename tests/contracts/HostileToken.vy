# pragma version 0.4.3
# pragma evm-version cancun
"""
@title HostileToken
@notice A token that misbehaves on demand; for tests only.
"""

interface Payout:
    def claim(epoch: uint256, index: uint256, account: address, cumulative: uint256, proof: DynArray[uint256, 32]) -> uint256: nonpayable
    def deposit(amount: uint256): nonpayable
    def paid(index: uint256) -> uint256: view

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
decimals: public(uint8)
blocked: public(HashMap[address, bool])  # transfers to it revert
denied: public(HashMap[address, bool])  # transfers to it return false
burnt: public(HashMap[address, bool])  # transfers to it use up all gas
fee: public(uint256)  # kept from every transferFrom
silent: public(bool)  # transfer returns nothing
doubled: public(bool)  # transfer takes twice the amount from the sender
reentered: public(bool)  # the nested call went through
seen: public(uint256)  # what Payout.paid said in the middle of a payment
target: public(address)
call_index: public(uint256)
call_account: public(address)
call_amount: public(uint256)
call_proof: DynArray[uint256, 32]
call_data: Bytes[1024]
mode: public(uint256)  # 0 none, 1 claim again, 2 deposit, 3 read, 4 whatever was given


@deploy
def __init__(decimals: uint8):
    self.decimals = decimals


@external
def mint(to: address, amount: uint256):
    self.balanceOf[to] += amount


@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    return True


@external
def block_(who: address, on: bool):
    self.blocked[who] = on


@external
def deny(who: address, on: bool):
    self.denied[who] = on


@external
def burn_gas(who: address, on: bool):
    self.burnt[who] = on


@external
def set_fee(fee: uint256):
    self.fee = fee


@external
def set_silent(on: bool):
    self.silent = on


@external
def set_doubled(on: bool):
    self.doubled = on


@external
def attack(mode: uint256, target: address, index: uint256, account: address, amount: uint256, proof: DynArray[uint256, 32]):
    self.mode = mode
    self.target = target
    self.call_index = index
    self.call_account = account
    self.call_amount = amount
    self.call_proof = proof


@external
def call_back(target: address, data: Bytes[1024]):
    self.mode = 4
    self.target = target
    self.call_data = data


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    self.allowance[owner][msg.sender] -= amount
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount - self.fee
    self._strike()
    return True


@external
@raw_return
def transfer(to: address, amount: uint256) -> Bytes[32]:
    assert not self.blocked[to], "HostileToken: blocked"
    if self.denied[to]:
        return abi_encode(False)
    if self.burnt[to]:
        assert not self.burnt[to], UNREACHABLE
    taken: uint256 = amount
    if self.doubled:
        taken = 2 * amount
    self.balanceOf[msg.sender] -= taken
    self.balanceOf[to] += taken
    self._strike()
    if self.silent:
        return b""
    return abi_encode(True)


@internal
def _strike():
    """
    @dev Calls back into the vault while it pays.
    """
    if self.mode == 1:
        self.mode = 0
        success: bool = raw_call(
            self.target,
            abi_encode(
                convert(1, uint256),
                self.call_index,
                self.call_account,
                self.call_amount,
                self.call_proof,
                method_id=method_id("claim(uint256,uint256,address,uint256,uint256[])"),
            ),
            revert_on_failure=False,
        )
        self.reentered = success
    elif self.mode == 2:
        self.mode = 0
        self.reentered = raw_call(
            self.target, abi_encode(convert(0, uint256), method_id=method_id("deposit(uint256)")), revert_on_failure=False
        )
    elif self.mode == 4:
        self.mode = 0
        self.reentered = raw_call(self.target, self.call_data, revert_on_failure=False)
    elif self.mode == 3:
        self.mode = 0
        success: bool = False
        answer: Bytes[32] = b""
        success, answer = raw_call(
            self.target,
            abi_encode(self.call_index, method_id=method_id("paid(uint256)")),
            max_outsize=32,
            is_static_call=True,
            revert_on_failure=False,
        )
        self.reentered = success
