import pytest

from scripts.check.substitute import SubstitutionError, substitute

VALUES = {"name": "World", "empty": "", "path": "a/b/c", "n": "8080", "_x1": "ok"}


# The expected values are those of Flux's envsubst (github.com/fluxcd/pkg/envsubst), its own tests among them.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("Hello ${name}!", "Hello World!"),
        ("${name}${n}", "World8080"),
        ("$name stays", "$name stays"),
        ("cost: 5$", "cost: 5$"),
        ("$${name}", "${name}"),
        ("$$name and $$$${n}", "$name and $${n}"),
        ("${_x1}", "ok"),
        ("${none:=fallback}", "fallback"),
        ("${none:-fallback}", "fallback"),
        ("${none=fallback}", "fallback"),
        ("${none:-}", ""),
        ("${empty:-fallback}", "fallback"),
        ("${name:-fallback}", "World"),
        ("${none:-${name}}", "World"),
        ("${none:-${other:-${n}}}", "8080"),
        ("${none:-a:b/c#d}", "a:b/c#d"),
        # bash would give the word only if the variable is set; Flux's envsubst gives it if it isn't
        ("${none:+word}", "word"),
        ("${name:+word}", "World"),
        ("${#name}", "5"),
        ("${name^^}", "WORLD"),
        ("${name,,}", "world"),
        ("${name,}", "world"),
        ("${path/b/x}", "a/x/c"),
        ("${name//o/0}", "W0rld"),
        ("${name/#Wo/wo}", "world"),
        ("${name/%ld/LD}", "WorLD"),
        ("${name/l/}", "Word"),
        ("${name:1}", "orld"),
        ("${name:1:3}", "orl"),
        ("${name:-3}", "World"),
        ("${name:9}", ""),
        ("${path#*/}", "b/c"),
        ("${path##*/}", "c"),
        ("${path%/*}", "a/b"),
        ("${path%%/*}", "a"),
    ],
)
def test_text_is_replaced_as_flux_does_it(text: str, expected: str) -> None:
    done = substitute(text, VALUES)
    assert (done.text, done.unset) == (expected, set())


@pytest.mark.parametrize("text", ["${none}", "${none^^}", "${#none}", "${none/a/b}", "${none:1}", "${none%x}"])
def test_a_name_without_value_and_default_is_told(text: str) -> None:
    assert substitute(text, VALUES).unset == {"none"}


def test_a_default_inside_a_default_is_told_only_if_it_has_none_itself() -> None:
    assert substitute("${a:-${b}}", {}).unset == {"b"}


@pytest.mark.parametrize("text", ["${name", "${}", "${name-default}", "${na me}", "${name:-x", "${name/a}", "${-x}"])
def test_what_flux_refuses_is_refused(text: str) -> None:
    with pytest.raises(SubstitutionError) as refused:
        substitute(text, VALUES)
    assert refused.value.mend


def test_a_value_that_cannot_be_known_here_stays_as_it_is_written() -> None:
    def stand_in(name: str) -> str | None:
        return "${secret}" if name == "secret" else None

    done = substitute("${secret} ${secret:-none} ${other}", {}, stand_in)
    assert (done.text, done.unset) == ("${secret} none ", {"other"})
