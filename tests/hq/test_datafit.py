import numpy as np
from skglm.datafits import Logistic

from hq.probe.datafit import StableLogistic

Y = np.array([1, -1, 1, -1], dtype=np.float32)


def test_it_is_the_logistic_loss_where_skglms_own_is_finite():
    Xw = np.array([0.3, -2.0, -5.0, 4.0], dtype=np.float32)
    ours, theirs = StableLogistic(), Logistic()
    np.testing.assert_allclose(ours.raw_hessian(Y, Xw), theirs.raw_hessian(Y, Xw), rtol=1e-5)
    np.testing.assert_allclose(ours.value(Y, None, Xw), theirs.value(Y, None, Xw), rtol=1e-6)


def test_wrong_by_hundreds_stays_finite_in_float32():
    Xw = np.array([-300, 300, 300, -300], dtype=np.float32)
    hessian = StableLogistic().raw_hessian(Y, Xw)
    assert hessian.dtype == np.float32
    assert (hessian == 0).all()
    assert StableLogistic().value(Y, None, Xw) == 150
