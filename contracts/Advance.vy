# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Advance
@license Apache-2.0
@notice A pool (ERC-4626) that pays contributors now what they have earned and cannot claim yet, for a stated price.
@dev A borrower is paid through a *lane*, a contract of its own that is registered as its payee. Whatever reaches the
     lane repays what is due first, principal before fee, and the rest goes on to the borrower.

     What a borrower may have is what the assessor attests of accruing income, times a part below one, and never
     more than a part of the pool; all of them together never more than another part. The price is the sum of a base,
     a slope times the part of the pool that is lent, and the borrower's own risk as the assessor states it: known and
     fixed when the advance is drawn, shown by `price`.

     Assets are what is held by the books, not by the token's balance, and principal lent. Fees count when they have
     been paid, and then bit by bit, so that nobody gains by coming just before and leaving just after. A share is
     therefore never worth less than before, except by a loss that is stated in an event of its own, which anybody
     can do when an advance is overdue and must be done before more is lent to that borrower. A loss that is repaid
     after all is a gain. Shares have six more decimals than the token and a virtual first deposit, so a first
     depositor cannot be robbed by inflating their price; a donation is nobody's.
"""

# ------------------------------------------------------------------ imports

from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed
from ethereum.ercs import IERC4626

import Purse as purse
import Stewards as stewards

implements: IERC20
implements: IERC20Detailed
implements: IERC4626
initializes: purse
initializes: stewards
exports: (purse.__interface__, stewards.__interface__)

# ------------------------------------------------------------------ interfaces

interface Lanes:
    def begin(): nonpayable
    def hand_on(token: address, to: address, amount: uint256) -> bool: nonpayable

# ------------------------------------------------------------------ constants

name: public(constant(String[32])) = "Headwater advance pool"
symbol: public(constant(String[8])) = "HWADV"

DEPOSIT: constant(uint256) = 1  # pause flags
DRAW: constant(uint256) = 2

WHOLE: constant(uint256) = 10_000  # basis points
VIRTUAL: constant(uint256) = 10**6  # shares of the virtual first unit
AMOUNT_MAX: constant(uint256) = 2**112 - 1
PRICE_MAX: constant(uint256) = 2_000  # basis points: a fifth
PART_MAX: constant(uint256) = 9_000  # of attested income that may be drawn
TERM_MIN_S: constant(uint256) = 3600
TERM_MAX_S: constant(uint256) = 365 * 86400

# ------------------------------------------------------------------ immutables

LANE: immutable(address)
DECIMALS: immutable(uint8)
TERM_S: immutable(uint256)
RELEASE_S: immutable(uint256)

# ------------------------------------------------------------------ structs

struct Limits:
    line_bps: uint256  # of the pool, for one borrower
    lent_bps: uint256  # of the pool, for all of them
    part_bps: uint256  # of attested income
    base_bps: uint256  # price of an advance
    slope_bps: uint256  # added to it when the whole pool is lent


struct Line:
    borrower: address
    income: uint256  # token units of accruing income, as attested
    risk_bps: uint256  # as stated by the assessor
    until: uint256  # seconds since 1970: the word counts until then
    principal: uint256  # token units lent and not repaid, a part of the assets
    fee: uint256  # token units due on top
    lost: uint256  # token units of principal stated as lost and not repaid
    due: uint256  # seconds since 1970; 0 when nothing is due

# ------------------------------------------------------------------ state

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)

assessor: public(address)
limits: public(Limits)
lines: public(HashMap[address, Line])  # by lane
cash: public(uint256)  # token units here by the books
lent: public(uint256)  # token units of principal in all
losses: public(uint256)  # token units stated as lost, ever
gained: public(uint256)  # token units of fees and of losses repaid, ever
_locked: uint256  # token units of gains not released at `_locked_at`
_locked_at: uint256

# ------------------------------------------------------------------ events

event LaneOpened:
    borrower: indexed(address)
    lane: indexed(address)


event Attested:
    lane: indexed(address)
    income: uint256
    risk_bps: uint256
    until: uint256


event Drawn:
    lane: indexed(address)
    amount: uint256
    fee: uint256
    due: uint256


event Repaid:
    lane: indexed(address)
    principal: uint256
    fee: uint256
    recovered: uint256
    passed_on: uint256


event LossStated:
    lane: indexed(address)
    amount: uint256


event LimitsSet:
    limits: Limits


event AssessorSet:
    assessor: indexed(address)

# ------------------------------------------------------------------ constructor

@deploy
def __init__(
    token: address,
    owner: address,
    guardian: address,
    assessor: address,
    lane: address,
    limits: Limits,
    term_s: uint256,
    release_s: uint256,
):
    """
    @notice Ties the pool to one token for ever and sets roles and limits.
    @param token ERC-20 with 6 to 18 decimals that takes no fee and does not rebase.
    @param owner Sets limits and assessor, lifts a pause.
    @param guardian Pauses deposits and new advances.
    @param assessor Attests accruing income and states a borrower's risk.
    @param lane Contract that lanes are copies of.
    @param limits In basis points, see the struct.
    @param term_s Seconds until an advance is overdue, an hour to a year.
    @param release_s Seconds over which a fee becomes assets, an hour to a year.
    """
    purse.__init__(token)
    stewards.__init__(owner, guardian)
    assert lane.is_contract, "Advance: lane is no contract"
    assert term_s >= TERM_MIN_S and term_s <= TERM_MAX_S, "Advance: term out of range"
    assert release_s >= TERM_MIN_S and release_s <= TERM_MAX_S, "Advance: release out of range"
    LANE = lane
    DECIMALS = staticcall IERC20Detailed(token).decimals() + 6
    TERM_S = term_s
    RELEASE_S = release_s
    self._set_limits(limits)
    self.assessor = assessor
    log AssessorSet(assessor=assessor)

# ------------------------------------------------------------------ shares

@external
@nonreentrant
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Moves shares of the caller.
    @param to Receives them.
    @param amount Shares in their smallest unit.
    @return True; anything else reverts.
    @custom:security The caller's own shares only.
    """
    self._move(msg.sender, to, amount)
    return True


@external
@nonreentrant
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    """
    @notice Moves shares of somebody who approved the caller.
    @param owner Whose shares.
    @param to Receives them.
    @param amount Shares in their smallest unit.
    @return True; anything else reverts.
    @custom:security Uses up the allowance, unless it is the largest number.
    """
    self._use_allowance(owner, amount)
    self._move(owner, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Lets somebody move or redeem shares of the caller.
    @param spender Who may.
    @param amount Shares in their smallest unit, replacing what was allowed before.
    @return True.
    @custom:security A spender can use the old allowance before this one counts.
    """
    self.allowance[msg.sender][spender] = amount
    log IERC20.Approval(owner=msg.sender, spender=spender, value=amount)
    return True

# ------------------------------------------------------------------ money in and out (ERC-4626)

@external
@nonreentrant
def deposit(assets: uint256, receiver: address = msg.sender) -> uint256:
    """
    @notice Takes tokens that the caller has approved and makes shares for them.
    @param assets Token units.
    @param receiver Receives the shares.
    @return Shares, rounded down.
    @custom:security Anybody. A token that takes a fee is refused. Stops while paused.
    """
    shares: uint256 = self._to_shares(assets, False)
    self._deposit(assets, shares, receiver)
    return shares


@external
@nonreentrant
def mint(shares: uint256, receiver: address = msg.sender) -> uint256:
    """
    @notice Makes shares for tokens that the caller has approved.
    @param shares In their smallest unit.
    @param receiver Receives the shares.
    @return Token units taken, rounded up.
    @custom:security As `deposit`.
    """
    assets: uint256 = self._to_assets(shares, True)
    self._deposit(assets, shares, receiver)
    return assets


@external
@nonreentrant
def withdraw(assets: uint256, receiver: address = msg.sender, owner: address = msg.sender) -> uint256:
    """
    @notice Gives tokens back for shares.
    @param assets Token units.
    @param receiver Receives the tokens.
    @param owner Whose shares.
    @return Shares taken, rounded up.
    @custom:security The owner, or whom it approved. Only money that is not lent can leave. Never paused.
    """
    shares: uint256 = self._to_shares(assets, True)
    self._withdraw(assets, shares, receiver, owner)
    return shares


@external
@nonreentrant
def redeem(shares: uint256, receiver: address = msg.sender, owner: address = msg.sender) -> uint256:
    """
    @notice Gives tokens back for shares.
    @param shares In their smallest unit.
    @param receiver Receives the tokens.
    @param owner Whose shares.
    @return Token units, rounded down.
    @custom:security As `withdraw`.
    """
    assets: uint256 = self._to_assets(shares, False)
    self._withdraw(assets, shares, receiver, owner)
    return assets

# ------------------------------------------------------------------ advances

@external
def open_lane(borrower: address) -> address:
    """
    @notice Makes a lane for a borrower; it has to be registered as its payee before anything is attested.
    @param borrower Draws advances on it and receives what is left of its income, for ever.
    @return The lane's address.
    @custom:security Anybody: a lane is worth nothing without the assessor's word.
    """
    assert borrower != empty(address) and borrower != self, "Advance: no borrower"
    lane: address = create_minimal_proxy_to(LANE)
    self.lines[lane].borrower = borrower
    log LaneOpened(borrower=borrower, lane=lane)
    extcall Lanes(lane).begin()
    return lane


@external
def attest(lane: address, income: uint256, risk_bps: uint256, until: uint256):
    """
    @notice States what is accruing to a lane and how risky it is.
    @param lane The borrower's.
    @param income Token units that the books hold for this lane and that no claim has paid yet.
    @param risk_bps Added to the price of an advance.
    @param until Seconds since 1970: nothing is drawn on this word after that.
    @custom:security Assessor only. A wrong word can cost one borrower's part of the pool.
    """
    assert msg.sender == self.assessor, "Advance: not the assessor"
    assert self.lines[lane].borrower != empty(address), "Advance: unknown lane"
    assert income <= AMOUNT_MAX and risk_bps <= PRICE_MAX, "Advance: word out of range"
    self.lines[lane].income = income
    self.lines[lane].risk_bps = risk_bps
    self.lines[lane].until = until
    log Attested(lane=lane, income=income, risk_bps=risk_bps, until=until)


@external
@nonreentrant
def draw(lane: address, amount: uint256, fee_max: uint256) -> uint256:
    """
    @notice Sends the borrower money now, to be repaid from the lane's income.
    @param lane The borrower's.
    @param amount Token units.
    @param fee_max Token units of fee that the borrower agrees to at most.
    @return Token units of fee.
    @custom:security The borrower only, within what is attested and the limits. What is due is due at the term of
        the oldest advance that is not repaid: drawing again does not put it off. Stops while paused.
    """
    stewards._runs(DRAW)
    line: Line = self.lines[lane]
    assert msg.sender == line.borrower, "Advance: not the borrower"
    assert amount > 0 and amount <= self._drawable(line), "Advance: above the line"
    fee: uint256 = self._price(amount, line.risk_bps)
    assert fee <= fee_max, "Advance: dearer than agreed"
    if line.due == 0:
        line.due = block.timestamp + TERM_S
    line.principal += amount
    line.fee += fee
    self.lines[lane] = line
    self.lent += amount
    self.cash -= amount
    assert purse._send(line.borrower, amount), "Advance: transfer failed"
    log Drawn(lane=lane, amount=amount, fee=fee, due=line.due)
    return fee


@external
@nonreentrant
def collect(lane: address) -> uint256:
    """
    @notice Divides what has reached a lane: first the pool, for principal and fee, then the borrower.
    @param lane The borrower's.
    @return Token units the pool received.
    @custom:security Anybody. When the token refuses the borrower, its part waits in the lane. Never paused.
    """
    return self._collect(lane)


@external
@nonreentrant
def state_loss(lane: address) -> uint256:
    """
    @notice Takes the principal of an overdue advance out of the assets.
    @param lane The borrower's.
    @return Token units lost; 0 when what was in the lane has repaid it.
    @custom:security Anybody, as soon as it is overdue. What is in the lane is collected first. The borrower still
        owes the loss, draws nothing until it is repaid, and what it repays is a gain.
    """
    assert self.lines[lane].due != 0 and block.timestamp >= self.lines[lane].due, "Advance: not overdue"
    self._collect(lane)
    amount: uint256 = self.lines[lane].principal
    if amount > 0:
        self.lines[lane].principal = 0
        self.lines[lane].lost += amount
        self.lent -= amount
        self.losses += amount
        log LossStated(lane=lane, amount=amount)
    return amount

# ------------------------------------------------------------------ limits

@external
def set_limits(limits: Limits):
    """
    @notice Sets the limits and the price of later advances.
    @param limits In basis points, see the struct.
    @custom:security Owner only. An advance that was drawn keeps its price.
    """
    stewards._only_owner()
    self._set_limits(limits)


@external
def set_assessor(assessor: address):
    """
    @notice Names who attests income.
    @param assessor Any address; zero lets nobody draw once the words given so far have run out.
    @custom:security Owner only.
    """
    stewards._only_owner()
    self.assessor = assessor
    log AssessorSet(assessor=assessor)

# ------------------------------------------------------------------ reading

@external
@view
def decimals() -> uint8:
    """
    @notice Decimals of the shares: six more than the token's.
    @return 12 to 24.
    @custom:security Fixed when the contract was made.
    """
    return DECIMALS


@external
@view
def asset() -> address:
    """
    @notice The token of the pool.
    @return ERC-20.
    @custom:security Fixed when the contract was made.
    """
    return purse.TOKEN.address


@external
@view
@nonreentrant
def totalAssets() -> uint256:
    """
    @notice What all shares are worth: cash and principal, less gains that are not released yet.
    @return Token units.
    @custom:security By the books: tokens sent here without a deposit are not in it.
    """
    return self._assets()


@external
@view
@nonreentrant
def convertToShares(assetAmount: uint256) -> uint256:
    """
    @notice Shares for token units, rounded down.
    @param assetAmount Token units.
    @return Shares in their smallest unit.
    @custom:security As of now.
    """
    return self._to_shares(assetAmount, False)


@external
@view
@nonreentrant
def convertToAssets(shareAmount: uint256) -> uint256:
    """
    @notice Token units for shares, rounded down.
    @param shareAmount In their smallest unit.
    @return Token units.
    @custom:security As of now; how much of it can leave says `maxWithdraw`.
    """
    return self._to_assets(shareAmount, False)


@external
@view
@nonreentrant
def maxDeposit(owner: address) -> uint256:
    """
    @notice How much can be deposited.
    @param owner Any address.
    @return Token units; 0 while paused.
    @custom:security The same for everybody.
    """
    return self._room()


@external
@view
@nonreentrant
def maxMint(owner: address) -> uint256:
    """
    @notice How many shares can be made.
    @param owner Any address.
    @return In their smallest unit; 0 while paused.
    @custom:security The same for everybody.
    """
    return self._to_shares(self._room(), False)


@external
@view
@nonreentrant
def maxWithdraw(owner: address) -> uint256:
    """
    @notice How much an owner can take out now.
    @param owner Whose shares.
    @return Token units; never more than what is not lent.
    @custom:security Others may be faster.
    """
    return min(self._to_assets(self.balanceOf[owner], False), self._free())


@external
@view
@nonreentrant
def maxRedeem(owner: address) -> uint256:
    """
    @notice How many shares an owner can redeem now.
    @param owner Whose shares.
    @return In their smallest unit.
    @custom:security Others may be faster.
    """
    return min(self.balanceOf[owner], self._to_shares(self._free(), False))


@external
@view
@nonreentrant
def previewDeposit(assets: uint256) -> uint256:
    """
    @notice Shares that a deposit would make.
    @param assets Token units.
    @return In their smallest unit.
    @custom:security As of now.
    """
    return self._to_shares(assets, False)


@external
@view
@nonreentrant
def previewMint(shares: uint256) -> uint256:
    """
    @notice Token units that a mint would take.
    @param shares In their smallest unit.
    @return Token units.
    @custom:security As of now.
    """
    return self._to_assets(shares, True)


@external
@view
@nonreentrant
def previewWithdraw(assets: uint256) -> uint256:
    """
    @notice Shares that a withdrawal would take.
    @param assets Token units.
    @return In their smallest unit.
    @custom:security As of now.
    """
    return self._to_shares(assets, True)


@external
@view
@nonreentrant
def previewRedeem(shares: uint256) -> uint256:
    """
    @notice Token units that redeeming would give.
    @param shares In their smallest unit.
    @return Token units.
    @custom:security As of now.
    """
    return self._to_assets(shares, False)


@external
@view
@nonreentrant
def price(lane: address, amount: uint256) -> uint256:
    """
    @notice What an advance costs.
    @param lane The borrower's.
    @param amount Token units.
    @return Token units of fee, rounded up.
    @custom:security As of now; `draw` takes the most the borrower agrees to.
    """
    return self._price(amount, self.lines[lane].risk_bps)


@external
@view
@nonreentrant
def drawable(lane: address) -> uint256:
    """
    @notice How much a borrower could draw now.
    @param lane The borrower's.
    @return Token units.
    @custom:security As of now.
    """
    return self._drawable(self.lines[lane])

# ------------------------------------------------------------------ internal

@internal
def _collect(lane: address) -> uint256:
    line: Line = self.lines[lane]
    assert line.borrower != empty(address), "Advance: unknown lane"
    here: uint256 = purse._held(lane)
    repaid: uint256 = min(here, line.principal + line.lost + line.fee)
    principal: uint256 = min(repaid, line.principal)
    recovered: uint256 = min(repaid - principal, line.lost)
    fee: uint256 = repaid - principal - recovered
    income_used: uint256 = min(line.income, here)
    line.income -= income_used  # what has come is not to come any more
    line.principal -= principal
    line.lost -= recovered
    line.fee -= fee
    if line.principal + line.lost + line.fee == 0:
        line.due = 0
    self.lines[lane] = line
    if repaid > 0:
        gain: uint256 = recovered + fee
        self._lock(gain)
        self.lent -= principal
        self.cash += repaid
        self.gained += gain
        before: uint256 = purse._held(self)
        assert extcall Lanes(lane).hand_on(purse.TOKEN.address, self, repaid), "Advance: transfer failed"
        assert purse._held(self) == before + repaid, "Advance: token takes a fee"
    passed_on: uint256 = here - repaid
    if passed_on > 0 and not extcall Lanes(lane).hand_on(purse.TOKEN.address, line.borrower, passed_on):
        passed_on = 0
    log Repaid(lane=lane, principal=principal, fee=fee, recovered=recovered, passed_on=passed_on)
    return repaid


@internal
@view
def _unreleased() -> uint256:
    passed: uint256 = block.timestamp - self._locked_at
    if passed >= RELEASE_S:
        return 0
    left: uint256 = self._locked * (RELEASE_S - passed)
    return (left + RELEASE_S - 1) // RELEASE_S  # rounded up: released units are never taken back


@internal
def _lock(gain: uint256):
    """
    @dev A gain waits to be released, together with what still waits of those before.
    """
    if gain > 0:
        self._locked = self._unreleased() + gain
        self._locked_at = block.timestamp


@internal
@view
def _assets() -> uint256:
    return self.cash + self.lent - self._unreleased()


@internal
@view
def _free() -> uint256:
    """
    @dev What can leave or be lent: cash that is not an unreleased gain.
    """
    unreleased: uint256 = self._unreleased()
    return self.cash - unreleased if self.cash > unreleased else 0


@internal
@view
def _room() -> uint256:
    if stewards.paused & DEPOSIT != 0:
        return 0
    assets: uint256 = self.cash + self.lent
    return AMOUNT_MAX - assets if assets < AMOUNT_MAX else 0


@internal
@view
def _to_shares(assets: uint256, up: bool) -> uint256:
    top: uint256 = assets * (self.totalSupply + VIRTUAL)
    under: uint256 = self._assets() + 1
    return (top + under - 1) // under if up else top // under


@internal
@view
def _to_assets(shares: uint256, up: bool) -> uint256:
    top: uint256 = shares * (self._assets() + 1)
    under: uint256 = self.totalSupply + VIRTUAL
    return (top + under - 1) // under if up else top // under


@internal
def _deposit(assets: uint256, shares: uint256, receiver: address):
    stewards._runs(DEPOSIT)
    assert receiver != empty(address) and receiver != self, "Advance: nobody to hold them"
    assert assets > 0 and shares > 0, "Advance: nothing to deposit"
    assert assets <= self._room(), "Advance: above the largest pool"
    purse._take(msg.sender, assets)
    self.cash += assets
    self.totalSupply += shares
    self.balanceOf[receiver] += shares
    log IERC20.Transfer(sender=empty(address), receiver=receiver, value=shares)
    log IERC4626.Deposit(sender=msg.sender, owner=receiver, assets=assets, shares=shares)


@internal
def _withdraw(assets: uint256, shares: uint256, receiver: address, owner: address):
    assert receiver != empty(address) and receiver != self, "Advance: nobody to pay"
    assert assets > 0 and shares > 0, "Advance: nothing to withdraw"
    assert assets <= self._free(), "Advance: lent out"
    self._use_allowance(owner, shares)
    held: uint256 = self.balanceOf[owner]
    assert held >= shares, "Advance: too few shares"
    self.balanceOf[owner] = held - shares
    self.totalSupply -= shares
    self.cash -= assets
    assert purse._send(receiver, assets), "Advance: transfer failed"
    log IERC20.Transfer(sender=owner, receiver=empty(address), value=shares)
    log IERC4626.Withdraw(sender=msg.sender, receiver=receiver, owner=owner, assets=assets, shares=shares)


@internal
def _use_allowance(owner: address, shares: uint256):
    if owner == msg.sender:
        return
    allowed: uint256 = self.allowance[owner][msg.sender]
    if allowed != max_value(uint256):
        assert allowed >= shares, "Advance: not approved"
        self.allowance[owner][msg.sender] = allowed - shares


@internal
def _move(sender: address, to: address, amount: uint256):
    assert to != empty(address) and to != self, "Advance: nobody to hold them"
    held: uint256 = self.balanceOf[sender]
    assert held >= amount, "Advance: too few shares"
    self.balanceOf[sender] = held - amount
    self.balanceOf[to] += amount
    log IERC20.Transfer(sender=sender, receiver=to, value=amount)


@internal
@view
def _drawable(line: Line) -> uint256:
    if block.timestamp > line.until or line.lost > 0 or (line.due != 0 and block.timestamp >= line.due):
        return 0
    limits: Limits = self.limits
    assets: uint256 = self._assets()
    due: uint256 = line.principal + line.fee
    backed: uint256 = line.income * limits.part_bps // WHOLE
    room: uint256 = backed - due if backed > due else 0
    of_pool: uint256 = assets * limits.line_bps // WHOLE
    room = min(room, of_pool - line.principal if of_pool > line.principal else 0)
    of_all: uint256 = assets * limits.lent_bps // WHOLE
    room = min(room, of_all - self.lent if of_all > self.lent else 0)
    return min(room, self._free())


@internal
@view
def _price(amount: uint256, risk_bps: uint256) -> uint256:
    """
    @dev Base, slope at what would be lent afterwards, and risk; at most a fifth, rounded up.
    """
    assets: uint256 = self._assets()
    use: uint256 = min(WHOLE, (self.lent + amount) * WHOLE // assets) if assets > 0 else WHOLE
    bps: uint256 = min(PRICE_MAX, self.limits.base_bps + self.limits.slope_bps * use // WHOLE + risk_bps)
    return (amount * bps + WHOLE - 1) // WHOLE


@internal
def _set_limits(limits: Limits):
    assert limits.line_bps <= limits.lent_bps and limits.lent_bps <= WHOLE, "Advance: limits out of range"
    assert limits.part_bps <= PART_MAX, "Advance: part out of range"
    assert limits.base_bps + limits.slope_bps <= PRICE_MAX, "Advance: price out of range"
    self.limits = limits
    log LimitsSet(limits=limits)
