"""A wrong answer in bfloat16, whose rounding would forgive an error of a percent."""

SUBMISSION = """
def double(x):
    return (2.002 * x).to(torch.bfloat16)


def guess(x):
    return torch.zeros((), dtype=torch.float8_e4m3fn)
"""
POINTS = 0
