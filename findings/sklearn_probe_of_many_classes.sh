#!/usr/bin/env bash
# scikit-learn's LogisticRegression of many classes stops before its first iteration, converged.
#
# Library:   scikit-learn 1.9.1.
# Expected:  on features that tell 4000 classes apart, a linear probe of default settings learns
#            them, or warns that it did not converge.
# Happens:   L-BFGS stops once no entry of the gradient exceeds tol=1e-4. The loss is the mean over
#            the images, so that the gradient of a class is its share of the images times its mean
#            feature: for normalised embeddings of 256 numbers and 4000 classes less than 1e-4 at
#            the start. All coefficients stay 0, the iterations are 0, every image is of the first
#            class, and nothing is warned of. C does not matter. With tol=1e-7 the probe learns.
#            With fewer classes it stops after a few iterations instead of at once.
# Matters:   probes of normalised CLIP embeddings on ImageNet-21k or iNaturalist's 10,000 species.
#            A weak probe is easily taken for a weak tower.
# Seen on 2026-11-29:
#   default: 0 iterations, largest coefficient 0.0, accuracy 0.025%
#   tol=1e-7, at most 10 iterations: 10 iterations, accuracy 100%
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile scikit-learn==1.9.1 numpy==2.4.6

"$work/venv/bin/python" - <<'EOF'
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression

CLASSES, WIDTH = 4000, 256
generator = np.random.default_rng(0)
common = generator.normal(size=WIDTH)
centres = common + generator.normal(size=(CLASSES, WIDTH))


def normalised(images_a_class):
    labels = np.repeat(np.arange(CLASSES), images_a_class)
    features = centres[labels] + 0.5 * generator.normal(size=(len(labels), WIDTH))
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


training, test = normalised(3), normalised(1)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    default = LogisticRegression().fit(*training)
    strong = LogisticRegression(C=1e6).fit(*training)
done, largest, accuracy = int(default.n_iter_[0]), np.abs(default.coef_).max(), default.score(*test)
print(f"default: {done} iterations, largest coefficient {largest}, accuracy {accuracy:.3%}")
assert done == strong.n_iter_[0] == 0 and largest == np.abs(strong.coef_).max() == 0.0
assert accuracy == 1 / CLASSES

warnings.simplefilter("ignore")  # Ten iterations are enough to show it.
longer = LogisticRegression(tol=1e-7, max_iter=10).fit(*training)
done, accuracy = int(longer.n_iter_[0]), longer.score(*test)
print(f"tol=1e-7, at most 10 iterations: {done} iterations, accuracy {accuracy:.0%}")
assert done > 1 and accuracy > 0.9
EOF
