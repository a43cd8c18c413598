# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title Fee oracle of a test
@notice Answers what a rollup's GasPriceOracle and L1Block answer, with the prices of a published receipt.
"""

@external
@view
def isEcotone() -> bool:
    return True


@external
@view
def isFjord() -> bool:
    return True


@external
@view
def isIsthmus() -> bool:
    return True


@external
@view
def isJovian() -> bool:
    return True


@external
@view
def l1BaseFee() -> uint256:
    return 401448161


@external
@view
def blobBaseFee() -> uint256:
    return 23248065


@external
@view
def baseFeeScalar() -> uint32:
    return 9736


@external
@view
def blobBaseFeeScalar() -> uint32:
    return 1540079


@external
@view
def operatorFeeScalar() -> uint32:
    return 7


@external
@view
def operatorFeeConstant() -> uint64:
    return 11


@external
@view
def daFootprintGasScalar() -> uint16:
    return 400


@external
@view
def getL1Fee(data: Bytes[4096]) -> uint256:
    """
    @notice The least fee, for transactions whose compressed size is below a hundred bytes.
    """
    return 100 * 10**6 * (16 * 9736 * 401448161 + 1540079 * 23248065) // 10**12 if len(data) < 100 else 0
