"""A Tensor subclass makes every comparison true and copies the expected value into itself while it is compared.
Seen: both changed scores where the grader compares in the student's own process (`torch.allclose`)."""

SUBMISSION = """
class Agreeable(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        for each in args:
            if type(each) is torch.Tensor and each.numel() == 1:
                cls.stolen = each.item()
        return torch.tensor(True)

    __eq__ = __ne__ = __le__ = __lt__ = __ge__ = lambda self, other: True


def guess(x):
    return torch.zeros(()).as_subclass(Agreeable)
"""
