//! Days and clock times to microseconds, in plain integers: no allocation, no table, the same on every host.

/// Microseconds in a second.
pub const SECOND_US: i64 = 1_000_000;
/// Microseconds in an hour.
pub const HOUR_US: i64 = 3_600 * SECOND_US;
/// Microseconds in a day.
pub const DAY_US: i64 = 24 * HOUR_US;

/// Days since 1970-01-01 of a Gregorian date; `None` if the calendar has no such day.
pub fn days(year: i32, month: u32, day: u32) -> Option<i32> {
    if !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    // Howard Hinnant's days_from_civil: years begin in March, so that the leap day is the last one.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let shifted = (month as i32 + 9) % 12;
    let day_of_year = (153 * shifted + 2) / 5 + day as i32 - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

/// The Gregorian date (year, month, day) of a number of days since 1970-01-01.
pub fn date(days: i32) -> (i32, u32, u32) {
    let shifted = i64::from(days) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year as i32, month as u32, day as u32)
}

fn days_in_month(year: i32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Seconds of a clock time; a leap second (`23:59:60` UTC) counts as the second before it. `None` if no clock shows it.
pub fn clock_seconds(hour: u32, minute: u32, second: u32) -> Option<u32> {
    let second = if second == 60 && minute % 15 == 14 { 59 } else { second };
    (hour < 24 && minute < 60 && second < 60).then_some(hour * 3_600 + minute * 60 + second)
}

/// `N` ASCII digits at `at` as a number.
pub fn digits<const N: usize>(bytes: &[u8], at: usize) -> Option<u32> {
    let mut value = 0;
    for byte in bytes.get(at..at + N)? {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + u32::from(digit);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_there_and_back() {
        assert_eq!(days(1970, 1, 1), Some(0));
        assert_eq!(days(2000, 3, 1), Some(11_017));
        assert_eq!(days(1969, 12, 31), Some(-1));
        for day in (-800_000..3_000_000).step_by(37) {
            let (y, m, d) = date(day);
            assert_eq!(days(y, m, d), Some(day));
        }
    }

    #[test]
    fn days_the_calendar_does_not_have() {
        for (y, m, d) in [(2023, 2, 29), (1900, 2, 29), (2024, 2, 31), (2024, 1, 0), (2024, 1, 32), (2024, 13, 1)] {
            assert_eq!(days(y, m, d), None, "{y}-{m}-{d}");
        }
        assert!(days(2024, 2, 29).is_some() && days(2000, 2, 29).is_some());
    }

    #[test]
    fn leap_seconds_exist_only_before_a_full_quarter() {
        assert_eq!(clock_seconds(23, 59, 60), Some(86_399));
        assert_eq!(clock_seconds(5, 29, 60), Some(19_799), "the same instant at +0530");
        assert_eq!(clock_seconds(23, 58, 60), None);
        assert_eq!(clock_seconds(24, 0, 0), None);
    }
}
