"""The theorems of the survey, one module each, stated as :class:`lrdyn.theorem.Theorem`."""
