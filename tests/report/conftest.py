"""A browser for the tests in this folder."""

from support.browser import browser as browser
