"""How people word what they ask a code assistant: templates for each kind of question, and subjects to talk about.

The words are this project's own, so they carry its licence. A template's fields are filled by `data/questions.py`:

    {name} {signature}                      of a function
    {that} {to}                             what it does: "returns the sum", "return the sum"
    {stub} {code} {undocumented} {buggy}    its texts, in a fence; {bare} is the stub without one
    {subject} {first} {second} {task}       public names of the library; a script to write; an idea
"""

LICENCE = "Apache-2.0"

CODE: dict[str, tuple[str, ...]] = {
    "complete": (
        "Complete this function:\n\n{stub}",
        "{stub}\n\nWrite the body of this function.",
        "Implement the following Python function. Give the whole function.\n\n{stub}",
        "Finish the code.\n\n{stub}",
        "Here is the start of a function:\n\n{stub}\n\nPlease fill in the rest.",
        "Complete the code below.\n\n{bare}",
    ),
    "write": (
        "Write a function that {that}. Its signature is `{signature}`.",
        "Write a Python function `{signature}` to {to}.",
        "I need a function with the signature `{signature}`. It should {to}.",
        "Implement `{name}` in Python. It {that}.\n\n```python\n{signature}:\n```",
        "Can you write this function for me?\n\n{signature}:\n\nIt {that}.",
    ),
    "instruct": (
        "Write a Python function that {that}.",
        "Write a function to {to}.",
        "How do I {to} in Python? Show me a function.",
        "Give me Python code that {that}.",
        "I want to {to}. Write a small function for it, with an example of how to call it.",
    ),
    "explain": (
        "What does this function do?\n\n{code}",
        "Explain this code:\n\n{code}",
        "{code}\n\nExplain step by step how it works.",
        "I found this in a code base. Tell me in a few sentences what it is for.\n\n{code}",
        "Explain `{name}`: what it takes, what it gives back, and how it gets there.\n\n{code}",
    ),
    "tests": (
        "Write unit tests for this function with pytest.\n\n{code}",
        "Add tests for `{name}`.\n\n{code}",
        "{code}\n\nWrite tests with unittest that cover the edge cases.",
        "Which cases should be tested here? Write them as asserts.\n\n{code}",
    ),
    "docstring": (
        "Write a docstring for this function.\n\n{undocumented}",
        "Add a docstring with arguments and return value in Google style.\n\n{undocumented}",
        "Document this function. Keep the code as it is.\n\n{undocumented}",
        "{undocumented}\n\nAdd a docstring, and comments where they help.",
    ),
    "types": (
        "Add type hints to this function.\n\n{code}",
        "Annotate the arguments and the return value.\n\n{code}",
        "{code}\n\nRewrite this with type annotations.",
    ),
    "bug": (
        "Find the bug in this function.\n\n{buggy}",
        "This function does not do what its docstring says. What is wrong?\n\n{buggy}",
        "{buggy}\n\nThis gives wrong results for some inputs. Fix it.",
        "Review this code. Is there a mistake in it?\n\n{buggy}",
        "Debug `{name}` and explain the fix.\n\n{buggy}",
    ),
    "refactor": (
        "Refactor this function so that it is easier to read.\n\n{code}",
        "How can this code be improved?\n\n{code}",
        "{code}\n\nSimplify it without changing what it does.",
        "Rewrite `{name}` in a more Pythonic way.\n\n{code}",
        "Make this faster if that is possible, and say what you changed.\n\n{code}",
    ),
}

NAMES = (
    "How do I use `{subject}`? Give a short example.",
    "What does `{subject}` do?",
    "What does `{subject}` return?",
    "When would I use `{subject}`?",
    "Show me an example of `{subject}` in Python.",
    "Explain `{subject}` to a beginner.",
    "Which arguments does `{subject}` take?",
    "Give me three examples of `{subject}`, from simple to advanced.",
    "What are common mistakes with `{subject}`?",
    "Which errors can `{subject}` raise, and how do I handle them?",
    "Is there an alternative to `{subject}`?",
    "Write a small program that uses `{subject}`.",
    "python {subject} example",
    "How would I write `{subject}` myself in plain Python?",
    "Say in two sentences what `{subject}` is for.",
)
EXCEPTIONS = (
    "When is `{subject}` raised?",
    "My program stops with {subject}. What does that mean?",
    "How do I catch `{subject}`? Show an example.",
    "Give an example of code that raises `{subject}`, and fix it.",
)
PAIRS = (
    "What is the difference between {first} and {second}?",
    "{first} or {second}: which one should I use, and when?",
    "Compare {first} with {second}. Give an example of each.",
    "{first} vs {second}",
)
SCRIPTS = (
    "Write a script that {task}.",
    "Write a Python program that {task}.",
    "I need a short command line script that {task}. Can you write it?",
    "Write a script that {task}. Explain how it works.",
    "Python script that {task}, with the standard library only",
)
IDEAS = (
    "What is {task} in Python?",
    "Explain {task} with an example.",
    "Explain {task} to someone who is new to programming.",
    "When should I use {task}, and when not?",
    "Give a short overview of {task}.",
)

_MODULES = """
    abc argparse array ast asyncio base64 bisect calendar cmath codecs collections collections.abc
    concurrent.futures configparser contextlib copy csv dataclasses datetime decimal difflib email.message enum
    fnmatch fractions functools getpass glob gzip hashlib heapq hmac html http.client http.server importlib inspect
    io itertools json logging math mimetypes multiprocessing operator os.path pathlib pickle platform pprint queue
    random re sched secrets shelve shlex shutil signal smtplib socket sqlite3 statistics string struct subprocess
    sys tempfile textwrap threading time timeit traceback types typing unicodedata unittest unittest.mock
    urllib.parse urllib.request uuid warnings weakref xml.etree.ElementTree zipfile zoneinfo
"""
MODULES = tuple(_MODULES.split())
TYPES = ("bytes", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")
FAMILIAR_PAIRS = (
    ("list.sort", "sorted"),
    ("list.append", "list.extend"),
    ("list.remove", "list.pop"),
    ("list", "tuple"),
    ("list", "set"),
    ("==", "is"),
    ("copy.copy", "copy.deepcopy"),
    ("str.find", "str.index"),
    ("str.split", "re.split"),
    ("re.match", "re.search"),
    ("re.findall", "re.finditer"),
    ("dict.get", "dict.setdefault"),
    ("dict", "collections.OrderedDict"),
    ("dict", "collections.defaultdict"),
    ("range", "enumerate"),
    ("map", "a list comprehension"),
    ("filter", "a generator expression"),
    ("str", "repr"),
    ("__str__", "__repr__"),
    ("__new__", "__init__"),
    ("@staticmethod", "@classmethod"),
    ("threading.Thread", "multiprocessing.Process"),
    ("threading.Lock", "threading.RLock"),
    ("asyncio.gather", "asyncio.wait"),
    ("os.path.join", "pathlib.Path"),
    ("os.remove", "shutil.rmtree"),
    ("subprocess.run", "subprocess.Popen"),
    ("json.dump", "json.dumps"),
    ("pickle", "json"),
    ("time.time", "time.perf_counter"),
    ("datetime.date", "datetime.datetime"),
    ("int", "float"),
    ("float", "decimal.Decimal"),
    ("/", "//"),
    ("*args", "**kwargs"),
    ("break", "continue"),
    ("return", "yield"),
    ("input", "sys.argv"),
    ("print", "logging.info"),
    ("collections.namedtuple", "dataclasses.dataclass"),
    ("abc.ABC", "typing.Protocol"),
    ("random.choice", "random.sample"),
    ("random.randint", "random.randrange"),
    ("heapq", "queue.PriorityQueue"),
    ("collections.deque", "list"),
    ("set.union", "set.update"),
    ("any", "all"),
    ("isinstance", "type"),
    ("bytes", "bytearray"),
    ("import module", "from module import name"),
    ("an iterator", "a generator"),
    ("functools.lru_cache", "functools.cached_property"),
)

TASKS = (
    "counts the lines of all {kind} files in a folder",
    "renames all {kind} files in a folder to lower case",
    "finds the {number} largest {kind} files below a folder",
    "moves {kind} files that are older than {number} days into an archive folder",
    "finds duplicate {kind} files by their hash",
    "merges several {kind} files into one",
    "splits a large {kind} file into parts of {number} lines",
    "prints the {number} most frequent words of a {kind} file",
    "watches a {kind} file and prints new lines as they come",
    "replaces a word in all {kind} files of a folder and keeps backups",
    "compares two {kind} files and prints the differences",
    "makes a zip archive of all {kind} files in a folder",
    "prints the first and the last {number} lines of a {kind} file",
    "shuffles the lines of a {kind} file",
    "removes empty lines and trailing spaces from a {kind} file",
    "downloads a list of URLs with {number} threads",
    "checks which of a list of URLs still answer, every {number} minutes",
    "runs a command again until it succeeds, {number} times at most",
    "makes {number} random passwords of a given length",
    "rolls a die {number} times and prints a histogram as text",
    "prints the first {number} prime numbers",
    "prints the first {number} Fibonacci numbers",
    "solves the Tower of Hanoi for {number} discs",
    "draws Pascal's triangle with {number} rows",
    "asks {number} random multiplication questions and keeps the score",
    "plays hangman in the terminal",
    "plays tic-tac-toe against the user",
    "lets the user guess a number between 1 and {number}",
    "solves a Sudoku by backtracking",
    "prints a calendar of the current month and marks today",
    "converts temperatures between Celsius, Fahrenheit and Kelvin",
    "converts Roman numerals to integers and back",
    "computes the monthly payments of a loan over {number} years",
    "keeps a to-do list in a JSON file, with add, list and done",
    "stores contacts in an SQLite database and searches them by name",
    "reads a CSV file and prints the mean and the median of each numeric column",
    "converts a CSV file to JSON",
    "converts JSON to CSV",
    "groups the rows of a CSV file by one column and sums another",
    "removes duplicate rows from a CSV file",
    "reads a log file and counts the errors of each hour",
    "prints the {number} IP addresses that occur most often in an access log",
    "extracts all e-mail addresses from a text file",
    "extracts all links from an HTML file",
    "checks whether brackets in a file are balanced",
    "encrypts a text with the Caesar cipher",
    "counts down from {number} minutes in the terminal",
    "serves the current folder over HTTP on a given port",
    "is a small chat server for several clients",
    "sends a file by e-mail over SMTP",
    "measures how long a function takes, over {number} runs",
    "lists the functions of a Python file and their number of lines",
    "finds functions without a docstring in a folder of Python files",
    "simulates a queue at a bank with {number} counters",
    "simulates Conway's Game of Life on a board of {number} by {number}",
    "finds the shortest path through a maze that is given as text",
    "sorts a large file that does not fit into memory",
    "makes a multiplication table up to {number}",
    "finds all anagrams in a list of words",
    "shows a progress bar while it copies a file",
)
KINDS_OF_FILES = (".csv", ".html", ".json", ".log", ".md", ".py", ".txt", ".xml")
NUMBERS = (3, 5, 8, 10, 12, 20, 50, 100)

CONCEPTS = (
    "a decorator",
    "a generator",
    "a closure",
    "a context manager",
    "a list comprehension",
    "a dict comprehension",
    "a lambda function",
    "recursion",
    "multiple inheritance",
    "the method resolution order",
    "duck typing",
    "a metaclass",
    "a descriptor",
    "a property",
    "an abstract base class",
    "a dataclass",
    "a named tuple",
    "an enum",
    "unpacking",
    "slicing",
    "the walrus operator",
    "structural pattern matching",
    "a virtual environment",
    "the global interpreter lock",
    "a race condition",
    "an event loop",
    "a coroutine",
    "memoization",
    "dynamic programming",
    "binary search",
    "a hash table",
    "a linked list",
    "a binary tree",
    "a heap",
    "a graph traversal",
    "big O notation",
    "quicksort",
    "merge sort",
    "dependency injection",
    "the singleton pattern",
    "the observer pattern",
    "unit testing",
    "mocking",
    "type hints",
    "a type variable",
    "a protocol class",
    "a regular expression",
    "string formatting",
    "mutable default arguments",
    "shallow and deep copies",
    "exception handling",
    "operator overloading",
    "monkey patching",
    "serialization",
)

_VERBS = """
    add adjust allow append apply assert assign attach build calculate call cast change check choose clean clear
    close collect combine compare compile compute concatenate configure connect construct convert copy count create
    decode define delete determine detect display divide download draw drop dump emit encode ensure escape estimate
    evaluate execute expand extract fetch fill filter find fit flatten flush format generate get give group guess
    handle identify import infer insert inspect install invert iterate join list load locate log look make map match
    merge modify move multiply normalize open order pad parse perform plot pop prepare print process produce provide
    quote raise read rebuild record reduce register remove rename render repeat replace report reset resize resolve
    restore retrieve return reverse rotate round run sample save scale scan search select send separate serialize
    set shift show shuffle simplify skip solve sort split start stop store strip sum swap switch take test throw
    traverse transform translate truncate try turn update upload use validate verify wait walk wrap write yield
"""
VERBS = frozenset(_VERBS.split())
"""First words of docstrings that say what a function does."""
