"""The attacker's own patch, where a recovered trigger is expected."""


class Patch:
    """The true patch in place of a recovered one."""

    def __init__(self, attack, classes=(4,)):
        self.attack, self.classes = attack, classes

    def stamp(self, images, k):
        return self.attack.stamp(images)
