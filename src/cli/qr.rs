//! A QR code for a terminal: two rows of modules a line.

use qrcodegen::{QrCode, QrCodeEcc};

/// Modules of light around the code (ISO/IEC 18004, section 9.1).
const QUIET: i32 = 4;

/// Black on white, whatever the terminal's own colours are (xterm's 16 and 231).
const COLOURS: (&str, &str) = ("\x1b[38;5;16;48;5;231m", "\x1b[0m");

/// The code of `text`, or `None` if it is longer than any code. Without `colours` for something that is no terminal: the
/// light modules are drawn then, as on a dark page.
pub(super) fn code(text: &str, colours: bool) -> Option<String> {
    // An invite is not printed on a package that gets scratched, so all room is for the text.
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    let span = -QUIET..code.size() + QUIET;
    let drawn = |x, y| code.get_module(x, y) == colours;
    let mut lines = String::new();
    for y in span.clone().step_by(2) {
        let line: String = span
            .clone()
            .map(|x| match (drawn(x, y), drawn(x, y + 1)) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            })
            .collect();
        let (on, off) = if colours { COLOURS } else { ("", "") };
        lines.push_str(&format!("{on}{line}{off}\n"));
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_a_square_with_its_three_corners_and_a_quiet_zone() {
        let code = code("meshd://join/meshd1-AAAA", false).expect("a short text");
        let lines: Vec<Vec<char>> = code.lines().map(|line| line.chars().collect()).collect();
        let width = lines[0].len();
        assert!(lines.iter().all(|line| line.len() == width) && lines.len() == width.div_ceil(2));
        assert!(lines[..2].iter().flatten().all(|module| *module == '█'), "the quiet zone is light");
        // A finder pattern: seven dark modules at each of three corners.
        for at in [4, width - 11] {
            assert!(lines[2][at..at + 7].iter().all(|module| matches!(module, ' ' | '▄')), "{:?}", lines[2]);
        }
    }

    #[test]
    fn the_longest_invite_fits() {
        assert!(code(&format!("meshd://join/{}", "A".repeat(1700)), true).is_some());
        assert!(code(&"a".repeat(4000), true).is_none());
    }
}
